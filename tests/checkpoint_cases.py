"""What the tests of weight files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sparse_mixer import SparseMixer

GOLDEN = Path(__file__).parent / "golden"


def weights_of(encoder: SparseMixer) -> list[np.ndarray[Any, Any]]:
    return encoder.get_weights()


def assert_unchanged(encoder: SparseMixer, before: list[np.ndarray[Any, Any]]) -> None:
    for now, then in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
