"""Circulant and Toeplitz mixing against the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from isolated import added_by, encoder_with, normalised_rows
from sparse_mixer import optimizers

Array = np.ndarray[Any, Any]


def circulant(values: Array) -> Array:
    size = len(values)
    return np.array([[values[(p - q) % size] for q in range(size)] for p in range(size)])


def toeplitz(values: Array) -> Array:
    size = (len(values) + 1) // 2
    return np.array([[values[size - 1 + q - p] for q in range(size)] for p in range(size)])


MATRICES = {"circulant": circulant, "toeplitz": toeplitz}


def vectors(rng: np.random.Generator, mechanism: str, length: int, width: int) -> dict[str, Array]:
    size = {"circulant": lambda n: n, "toeplitz": lambda n: 2 * n - 1}[mechanism]
    return {
        f"{mechanism}_transform/hidden_kernel": rng.standard_normal(size(width)).astype(np.float32),
        f"{mechanism}_transform/seq_kernel": rng.standard_normal(size(length)).astype(np.float32),
    }


def mixed(rows: Array, weights: dict[str, Array], mechanism: str) -> Array:
    hidden, seq = (MATRICES[mechanism](values.astype(np.float64)) for values in weights.values())
    return seq @ rows @ hidden.T


@pytest.mark.parametrize("use_fft", [False, True])
@pytest.mark.parametrize(("length", "width"), [(6, 8), (1, 8), (7, 9), (33, 20), (64, 48)])
@pytest.mark.parametrize("mechanism", MATRICES)
def test_formula(rng: np.random.Generator, mechanism: str, length: int, width: int, use_fft: bool) -> None:
    rows = normalised_rows(rng, 2, length, width)
    weights = vectors(rng, mechanism, length, width)
    encoder = encoder_with(
        weights, mixing_mechanism=mechanism, use_fft=use_fft, max_sequence_length=length, hidden_size=width
    )
    expected = mixed(rows, weights, mechanism)
    np.testing.assert_allclose(added_by(encoder, rows), expected, atol=2e-5 * np.abs(expected).max(), rtol=1e-4)


@pytest.mark.parametrize("use_fft", [False, True])
@pytest.mark.parametrize("mechanism", MATRICES)
def test_changes_of_the_vectors_take_effect(rng: np.random.Generator, mechanism: str, use_fft: bool) -> None:
    """By assignment, and in place by an optimiser."""
    rows = normalised_rows(rng, 2)
    encoder = encoder_with(vectors(rng, mechanism, 6, 8), mixing_mechanism=mechanism, use_fft=use_fft)
    kernels = [weight for weight in encoder.weights if f"{mechanism}_transform/" in weight.key]
    added_by(encoder, rows)
    for kernel in kernels:
        kernel.assign(2 * kernel.numpy())
    weights = {kernel.key: kernel.numpy() for kernel in kernels}
    expected = mixed(rows, weights, mechanism)
    np.testing.assert_allclose(added_by(encoder, rows), expected, atol=1e-3, rtol=1e-4)

    inputs = {
        "input_word_embeddings": rows,
        "input_type_ids": np.zeros((2, 6), np.int32),
        "input_mask": np.ones((2, 6)),
    }
    _, vjp = encoder.vjp(inputs)
    optimizers.SGD(0.01).apply_gradients(encoder, vjp({"sequence_output": rows}))
    changed = {kernel.key: kernel.numpy() for kernel in kernels}
    assert all((changed[key] != weights[key]).all() for key in changed)
    # The optimiser has changed biases as well: compare with a copy, which is built from the weights.
    copy = encoder_with({}, mixing_mechanism=mechanism, use_fft=use_fft)
    copy.set_weights(encoder.get_weights())
    np.testing.assert_array_equal(added_by(copy, rows), added_by(encoder, rows))
