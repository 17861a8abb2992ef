"""Which layers attend or have experts: the layouts of the Sparse Mixer paper, as index tuples for `SparseMixer`.

Examples:
    >>> from sparse_mixer import layouts
    >>> layouts.middle(14, 4), layouts.top(14, 4)  # Sparse Mixer Base: experts, attention
    ((5, 6, 7, 8), (10, 11, 12, 13))
"""

from __future__ import annotations

from collections.abc import Callable

from sparse_mixer._core.checks import as_int

__all__ = ["LAYOUTS", "bottom", "layer_indices", "middle", "mixed", "top"]


# As the core's limit.
_MAX_LAYERS = 4096


def bottom(num_layers: int, count: int) -> tuple[int, ...]:
    """The first `count` layers."""
    layers, count = _checked(num_layers, count)
    return tuple(layer for layer in range(layers) if layer < count)


def top(num_layers: int, count: int) -> tuple[int, ...]:
    """The last `count` layers."""
    layers, count = _checked(num_layers, count)
    return tuple(layer for layer in range(layers) if layer >= layers - count)


def middle(num_layers: int, count: int) -> tuple[int, ...]:
    """The `count` layers in the middle, one higher where there is no exact middle."""
    layers, count = _checked(num_layers, count)
    return tuple(layer for layer in range(layers) if layers - count <= 2 * layer < layers + count)


def mixed(num_layers: int, count: int) -> tuple[int, ...]:
    """Every ``num_layers // count``-th layer from the first on; more than `count` where that does not divide.

    Raises:
        ValueError: `count` exceeds `num_layers`.
    """
    layers, count = _checked(num_layers, count)
    if count > layers:
        raise ValueError(f"count: got {count}, expected at most num_layers ({layers}) in a mixed layout")
    return tuple(range(0, layers, layers // count)) if count else ()


LAYOUTS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "bottom": bottom,
    "middle": middle,
    "mixed": mixed,
    "top": top,
}
"""The layouts by their names in configurations of the JAX code, in lower case."""


def layer_indices(layout: str, num_layers: int, count: int) -> tuple[int, ...]:
    """The layers that a layout names.

    Args:
        layout: ``"bottom"``, ``"middle"``, ``"mixed"`` or ``"top"``, in any case.
        num_layers: Number of layers of the encoder.
        count: Layers to choose.

    Raises:
        ValueError: An unknown layout, or a count that does not fit.
        TypeError: `layout` is not a string.
    """
    if not isinstance(layout, str):
        raise TypeError(f"layout: expected a string, got {layout!r} ({type(layout).__name__})")
    if layout.lower() not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[layout.lower()](num_layers, count)


def _checked(num_layers: int, count: int) -> tuple[int, int]:
    layers, chosen = as_int("num_layers", num_layers), as_int("count", count)
    if layers < 1:
        raise ValueError(f"num_layers: got {layers}, expected at least 1")
    if layers > _MAX_LAYERS:
        raise ValueError(f"num_layers: got {layers}, expected at most {_MAX_LAYERS}")
    if chosen < 0:
        raise ValueError(f"count: got {chosen}, expected at least 0")
    return layers, chosen
