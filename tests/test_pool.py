"""Pooler: the first position, a dense layer, tanh."""

from __future__ import annotations

import numpy as np
from isolated import encoder_with, inputs_of, normalised_rows


def test_formula(rng: np.random.Generator) -> None:
    rows, kernel, bias = normalised_rows(rng, 3), rng.standard_normal((8, 8)), rng.standard_normal(8)
    encoder = encoder_with({"pooler_transform/kernel": kernel, "pooler_transform/bias": bias})
    outputs = encoder(inputs_of(rows))
    expected = np.tanh(outputs["sequence_output"][:, 0] @ kernel + bias)
    np.testing.assert_allclose(outputs["pooled_output"], expected, atol=1e-6)
