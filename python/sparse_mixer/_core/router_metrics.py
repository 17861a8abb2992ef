"""Router metrics of the mixture-of-experts layers, as running means in the manner of Keras."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

# Per MoE layer, in TensorFlow's order.
METRIC_NAMES = (
    "unscaled_router_z_loss",
    "router_z_loss",
    "load_balancing_loss",
    "fraction_tokens_left_behind",
    "router_confidence",
    "expert_usage",
)


# One for all means, so that a fork can wait for it: a child must not find it held by a thread that it does not have.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class Mean:
    """Running mean of a scalar over calls, until `reset_state`.

    Attributes:
        name: The metric's name; the same for every layer, as in TensorFlow.
        layer: Index of the encoder layer that it describes.
    """

    def __init__(self, name: str, layer: int) -> None:
        self.name = name
        self.layer = layer
        self._total = 0.0
        self._count = 0

    def update_state(self, value: float) -> None:
        """Count one more value."""
        with _LOCK:
            self._total += float(value)
            self._count += 1

    def result(self) -> np.float32:
        """Mean of all values since the last reset; 0 when there are none."""
        with _LOCK:
            return np.float32(self._total / self._count if self._count else 0.0)

    def reset_state(self) -> None:
        """Forget all values."""
        with _LOCK:
            self._total = 0.0
            self._count = 0

    reset_states = reset_state

    def __repr__(self) -> str:
        return f"<Mean {self.name!r} layer={self.layer} result={self.result():.6g}>"


class RouterMetrics:
    """Six `Mean` objects per MoE layer, fed with the auxiliary values of each call."""

    def __init__(self, moe_layers: list[int]) -> None:
        self.means = [Mean(name, layer) for layer in moe_layers for name in METRIC_NAMES]

    def update(self, aux: Mapping[str, Any]) -> None:
        """Add one call's values, arrays ``[num_moe_layers]`` under the metrics' names; empty for an empty batch."""
        count = len(aux["moe_layers"]) * len(METRIC_NAMES)
        for position, mean in enumerate(self.means[:count]):
            mean.update_state(aux[mean.name][position // len(METRIC_NAMES)])
