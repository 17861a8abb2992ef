"""Vectors in fewer bits, with the names and results of `sentence_transformers.util`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer.embeddings.similarity import as_matrix

Array = npt.NDArray[Any]

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
"""Types of the numbers of a vector."""

# Levels of 8-bit numbers.
_STEPS = 255


def quantize_embeddings(
    embeddings: npt.ArrayLike,
    precision: str,
    ranges: npt.ArrayLike | None = None,
    calibration_embeddings: npt.ArrayLike | None = None,
) -> Array:
    """Vectors in fewer bits.

    Args:
        embeddings: Vectors [N, D].
        precision: ``"float32"``; ``"int8"`` or ``"uint8"``, 256 levels between the least and the largest value of each
            column; ``"binary"`` (int8) or ``"ubinary"`` (uint8), one bit per number, set where it is above 0, 8 of them
            to a byte.
        ranges: Least and largest value of each column, [2, D].
        calibration_embeddings: Vectors that the ranges are taken from. Without both, `embeddings` are.

    Returns:
        float32, int8 or uint8 [N, D], or [N, D / 8].

    Raises:
        ValueError: An unknown precision, or ranges of another shape.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}")
    vectors = as_matrix("embeddings", embeddings)
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        source = (
            vectors if calibration_embeddings is None else as_matrix("calibration_embeddings", calibration_embeddings)
        )
        if not len(source):
            return vectors.astype(precision)
        ranges = np.stack([source.min(axis=0), source.max(axis=0)])
    limits = as_matrix("ranges", ranges)
    if limits.shape != (2, vectors.shape[1]):
        raise ValueError(f"ranges: got shape {list(limits.shape)}, expected [2, {vectors.shape[1]}]")
    least, largest = limits
    steps = np.where(largest > least, (largest - least) / np.float32(_STEPS), 1).astype(np.float32)
    levels = np.clip((vectors - least) / steps, 0, _STEPS)
    quantised: Array = levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    return quantised
