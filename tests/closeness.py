"""How close is close enough: the one place with tolerances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# |a - b| <= max(OUTPUT_ABSOLUTE, NOISE_FACTOR * noise) + OUTPUT_RELATIVE * |b|, where noise is the
# distance of the float32 reference from a float64 evaluation of the same formulas.
OUTPUT_ABSOLUTE = 2e-5
OUTPUT_RELATIVE = 1e-4
NOISE_FACTOR = 8.0

# Losses and metrics, absolute and relative.
METRIC = 1e-6

# |a - b| <= GRADIENT_RELATIVE * max|b of the tensor| + GRADIENT_FLOOR * max|b of all tensors|. The
# second term is there for gradients that are mathematically zero (the key bias of attention).
GRADIENT_RELATIVE = 2e-4
GRADIENT_FLOOR = 1e-5

# Routers closer than this to picking another token cannot be compared by their outputs.
ROUTER_MARGIN = 1e-6


def assert_output_close(name: str, ours: Array, reference: Array, noise: float = 0.0) -> None:
    """Fails with the worst element of the output `name`."""
    assert ours.dtype == np.float32, f"{name}: dtype {ours.dtype}"
    assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, expected {reference.shape}"
    error = np.abs(ours.astype(np.float64) - reference)
    bound = max(OUTPUT_ABSOLUTE, NOISE_FACTOR * noise) + OUTPUT_RELATIVE * np.abs(reference)
    if not (error <= bound).all():
        worst = np.unravel_index(np.argmax(error / bound), error.shape)
        raise AssertionError(
            f"{name}{[int(i) for i in worst]}: got {ours[worst]}, expected {reference[worst]}; "
            f"off by {error[worst]:.3g}, allowed {bound[worst]:.3g} (noise {noise:.3g}); "
            f"{(error > bound).mean():.1%} of the elements are off"
        )


def assert_metrics_close(ours: Array, reference: Array, noise: Array | float = 0.0) -> None:
    """Compares losses or metrics; infinities and NaN must be in the same places."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"shape {ours.shape}, expected {reference.shape}"
    finite = np.isfinite(reference)
    np.testing.assert_array_equal(ours[~finite], reference[~finite])
    noise = np.broadcast_to(noise, reference.shape)[finite]
    error = np.abs(ours[finite] - reference[finite])
    allowed = METRIC * (1 + np.abs(reference[finite])) + NOISE_FACTOR * noise
    assert (error <= allowed).all(), f"got {ours}, expected {reference}"


def assert_gradients_close(names: Sequence[str], ours: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    """Compares one gradient per name."""
    floor = GRADIENT_FLOOR * max(float(np.abs(reference[name]).max(initial=0)) for name in names)
    wrong = []
    for name in names:
        assert ours[name].shape == reference[name].shape, f"{name}: shape {ours[name].shape}"
        peak = float(np.abs(reference[name]).max(initial=0))
        error = float(np.abs(ours[name].astype(np.float64) - reference[name]).max(initial=0))
        if not error <= GRADIENT_RELATIVE * peak + floor:
            wrong.append(f"{name}: off by {error:.3g} of {peak:.3g}")
    assert not wrong, "\n".join(wrong)
