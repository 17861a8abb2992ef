"""Pictures of what an encoder does. Needs matplotlib (``pip install "sparse_mixer[plot]"``).

Figures are returned: ``figure.savefig("routing.png")``, or the last line of a notebook cell, which shows them. No
global state of matplotlib is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_list
from sparse_mixer._core.extras import new_figure


def combine_weights(
    routing: Mapping[str, npt.NDArray[Any]],
) -> npt.NDArray[np.float32]:
    """Return how much of each expert's output each token receives.

    Args:
        routing: one entry of ``encoder(inputs, outputs=("routing",))["routing"]``: ``indices`` [G, E, C], the tokens
            that each expert has, -1 in empty slots, and ``probabilities`` [G, T, E].

    Returns:
        float32 [G, T, E]: the router's probability where the expert has the token, elsewhere 0.

    Raises:
        TypeError: `routing` is no mapping.
        ValueError: It does not have these arrays, or they do not fit each other.
    """
    if not isinstance(routing, Mapping):
        raise TypeError(f"routing: expected a mapping, one entry of the list, got {type(routing).__name__}")
    if not {"indices", "probabilities"} <= routing.keys():
        raise ValueError(f"routing: expected indices and probabilities, got {sorted(map(str, routing))}")
    indices, probabilities = np.asarray(routing["indices"]), np.asarray(routing["probabilities"])
    fits = indices.ndim == probabilities.ndim == 3 and indices.shape[:2] == probabilities.shape[::2]
    if not fits or indices.dtype.kind not in "iu" or (indices.size and indices.max() >= probabilities.shape[1]):
        raise ValueError(
            f"routing: expected indices [G, E, C] of tokens and probabilities [G, T, E], got {indices.dtype} "
            f"{indices.shape} and {probabilities.shape}"
        )
    chosen = np.zeros(probabilities.shape, bool)
    groups, experts, slots = np.nonzero(indices >= 0)
    chosen[groups, indices[groups, experts, slots], experts] = True
    return np.where(chosen, probabilities, np.float32(0)).astype(np.float32)


def routing_figure(
    routing: Sequence[Mapping[str, npt.NDArray[Any]]],
    moe_layers: Sequence[int] | npt.NDArray[Any],
    *,
    group: int = 0,
    mask: npt.NDArray[Any] | None = None,
) -> Any:
    """Draw which expert takes which token: a panel per mixture-of-experts layer, experts by tokens.

    The colour is the weight of the expert's output; grey lines under each panel mark tokens that no expert chose.

    Args:
        routing: ``encoder(inputs, outputs=("routing",))["routing"]``.
        moe_layers: indices of those layers, ``encoder.aux_losses["moe_layers"]``.
        group: which group of tokens (with ``examples_per_group=1``: which example of the batch).
        mask: input mask [T] of these tokens; the padding is shaded.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No such group, no layers, or as many `moe_layers` as `routing` has not.
    """
    routing = as_list("routing", routing, "layers' routing")
    if not routing or len(routing) != len(moe_layers):
        raise ValueError(f"moe_layers: expected as many as entries of routing (at least 1), got {len(moe_layers)}")
    groups = routing[0]["indices"].shape[0]
    if not 0 <= group < groups:
        raise ValueError(f"group: expected 0 to {groups - 1}, got {group}")
    figure = new_figure(10, 1 + 1.9 * len(routing))
    panels = figure.subplots(len(routing), 1, sharex=True, squeeze=False)[:, 0]
    length = routing[0]["probabilities"].shape[1]
    if mask is not None and np.shape(mask) != (length,):
        raise ValueError(f"mask: expected shape [{length}], one entry per token of a group, got {list(np.shape(mask))}")
    for panel, entry, layer in zip(panels, routing, moe_layers, strict=True):
        weights = combine_weights(entry)[group].T
        experts, tokens = weights.shape
        shown = panel.imshow(
            np.ma.masked_equal(weights, 0),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            extent=(-0.5, tokens - 0.5, experts - 0.5, -0.5),
        )
        left_behind = np.flatnonzero(weights.sum(0) == 0)
        panel.vlines(left_behind, experts - 0.5, experts + 0.5, color="0.6", linewidth=0.8)
        panel.set_ylim(experts + 0.5, -0.5)
        if mask is not None:
            for start, stop in _runs(np.asarray(mask) == 0):
                panel.axvspan(start - 0.5, stop - 0.5, color="0.5", alpha=0.15, linewidth=0)
        share = len(left_behind) / tokens
        panel.set_title(f"layer {int(layer)}: {share:.0%} of the tokens left behind", fontsize="medium", loc="left")
        panel.set_ylabel("expert")
        figure.colorbar(shown, ax=panel, label="weight", pad=0.01)
    panels[-1].set_xlabel("token" + ("" if mask is None else " (padding shaded)"))
    return figure


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return start and end (exclusive) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
