"""Fourier and Hartley mixing against NumPy's transform."""

from __future__ import annotations

import numpy as np
import pytest
from isolated import added_by, encoder_with, normalised_rows

# Powers of two, odd, prime, and larger than a block of any kernel.
SIZES = [(1, 8), (2, 4), (6, 8), (7, 9), (13, 11), (16, 16), (31, 30), (64, 48), (97, 101)]


@pytest.mark.parametrize("use_fft", [False, True])
@pytest.mark.parametrize("mechanism", ["fourier", "hartley"])
@pytest.mark.parametrize(("length", "width"), SIZES)
def test_formula(rng: np.random.Generator, mechanism: str, use_fft: bool, length: int, width: int) -> None:
    rows = normalised_rows(rng, 2, length, width)
    spectrum = np.fft.fft2(rows.astype(np.float64))
    expected = spectrum.real if mechanism == "fourier" else spectrum.real - spectrum.imag
    encoder = encoder_with(
        {}, mixing_mechanism=mechanism, use_fft=use_fft, max_sequence_length=length, hidden_size=width
    )
    np.testing.assert_allclose(added_by(encoder, rows), expected, atol=2e-5 * np.abs(expected).max())


def test_has_no_weights() -> None:
    encoder = encoder_with({}, mixing_mechanism="fourier")
    assert [weight.key.split("/")[2] for weight in encoder.transformer_layers[0].weights] == [
        *["self_attention_layer_norm"] * 2,
        *["intermediate"] * 2,
        *["output"] * 2,
        *["output_layer_norm"] * 2,
    ]
