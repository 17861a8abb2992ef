"""What happened in a run of training, as numbers and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_mixer._extras import require


@dataclass
class History:
    """What happened in a run.

    Attributes:
        epochs: The logs of every epoch: means of the metrics, ``val_...`` those of the validation.
        steps: Loss and learning rate of every update.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)

    @property
    def history(self) -> dict[str, list[float]]:
        """The epochs' logs by metric, as in Keras; NaN where an epoch lacks one."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        return {name: [epoch.get(name, math.nan) for epoch in self.epochs] for name in names}

    def plot(self) -> Any:
        """Draw the loss of every step, and losses and accuracies of the epochs. Needs matplotlib.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        figure = require("matplotlib.figure", "plot").Figure(figsize=(10, 4), layout="constrained")
        by_metric = self.history
        accuracies = [name for name in by_metric if name.endswith("accuracy")]
        panels = figure.subplots(1, 2 if accuracies else 1, squeeze=False)[0]
        losses = [loss for loss, _ in self.steps]
        panels[0].plot(range(1, len(losses) + 1), losses, color="0.75", linewidth=0.8, label="loss of the step")
        ends = np.linspace(0, len(losses), len(self.epochs) + 1)[1:]
        for name in ("loss", "val_loss"):
            if name in by_metric:
                panels[0].plot(ends, by_metric[name], marker="o", label=name)
        panels[0].set(xlabel="update", ylabel="loss")
        panels[0].legend()
        for name in accuracies:
            panels[1].plot(range(1, len(self.epochs) + 1), by_metric[name], marker="o", label=name)
        if accuracies:
            panels[1].set(xlabel="epoch", ylabel="accuracy")
            panels[1].legend()
        return figure
