"""Linear mixing: `seq @ x @ hidden`, both matrices learned."""

from __future__ import annotations

import numpy as np
import pytest
from isolated import added_by, encoder_with, normalised_rows


def test_formula(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 3)
    hidden, sequence = rng.standard_normal((8, 8)), rng.standard_normal((6, 6))
    encoder = encoder_with({"linear_transform/hidden_kernel": hidden, "linear_transform/seq_kernel": sequence})
    np.testing.assert_allclose(added_by(encoder, rows), sequence @ rows @ hidden, rtol=1e-4, atol=1e-4)


def test_sequence_kernel_is_indexed_out_in(rng: np.random.Generator) -> None:
    """Position 0 of the output takes from position 3 of the input, not the other way round."""
    rows = normalised_rows(rng, 1)
    sequence = np.zeros((6, 6))
    sequence[0, 3] = 1
    encoder = encoder_with({"linear_transform/hidden_kernel": np.eye(8), "linear_transform/seq_kernel": sequence})
    added = added_by(encoder, rows)
    np.testing.assert_allclose(added[:, 0], rows[:, 3], atol=1e-5)
    np.testing.assert_allclose(added[:, 1:], 0, atol=1e-5)


@pytest.mark.parametrize("use_fft", [False, True])
def test_use_fft_means_nothing_here(rng: np.random.Generator, use_fft: bool) -> None:
    rows = normalised_rows(rng, 2)
    weights = {"linear_transform/hidden_kernel": np.eye(8), "linear_transform/seq_kernel": np.eye(6)}
    np.testing.assert_allclose(added_by(encoder_with(weights, use_fft=use_fft), rows), rows, atol=1e-5)
