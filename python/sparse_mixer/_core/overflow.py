"""A warning of weights that float16 made infinite: it ends at 65,504."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from sparse_mixer import _native


def overflowing(core: _native.Encoder, indices: Collection[int] | None = None) -> set[int]:
    """Those of the weights at `indices`, or of all, that are stored as float16 and hold an infinity."""
    if core.dtype != "float16":
        return set()
    return set(core.infinite(range(len(core.weight_specs())) if indices is None else list(indices)))


def warn_of_overflow(core: _native.Encoder, indices: Collection[int], stacklevel: int) -> None:
    """Warn that the weights at `indices`, if any, became infinite; the warning names the first five."""
    if not indices:
        return
    names = [name for name, _ in core.weight_specs()]
    named = ", ".join(names[index] for index in sorted(indices)[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    warnings.warn(
        f"float16 ends at 65504, and larger numbers became infinite in {named}{more}; bfloat16 has float32's range",
        UserWarning,
        stacklevel=stacklevel + 1,
    )
