"""What happened in a run of training, as numbers and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_mixer._core.extras import new_figure


@dataclass(repr=False)
class History:
    """What happened in a run.

    Attributes:
        epochs: The logs of every epoch: means of the metrics, ``val_...`` those of the validation.
        steps: Loss and learning rate of every update.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)

    def __repr__(self) -> str:
        parts = [f"{len(self.epochs)} epochs", f"{len(self.steps)} updates"]
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            values = [epoch[name] for epoch in self.epochs if name in epoch]
            if values:
                parts.append(f"{name} {values[0]:.4g}" + (f" to {values[-1]:.4g}" if len(values) > 1 else ""))
        return f"<History of {', '.join(parts)}>"

    @property
    def history(self) -> dict[str, list[float]]:
        """The epochs' logs by metric, as in Keras; NaN where an epoch lacks one."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        return {name: [epoch.get(name, math.nan) for epoch in self.epochs] for name in names}

    def plot(self) -> Any:
        """Draw losses of steps and epochs with the learning rate, accuracies, and for models with experts the routers.

        Needs matplotlib.

        Returns:
            A `matplotlib.figure.Figure`, which notebooks show as the last line of a cell.
        """
        by_metric = self.history
        accuracies = [name for name in by_metric if name.endswith("accuracy")]
        shares = [name for name in _SHARES if name in by_metric]
        count = 1 + bool(accuracies) + bool(shares)
        figure = new_figure(1 + 4.5 * count, 4)
        panels = figure.subplots(1, count, squeeze=False)[0]
        self._plot_losses(panels[0], by_metric)
        epochs = range(1, len(self.epochs) + 1)
        if accuracies:
            for name in accuracies:
                panels[1].plot(epochs, by_metric[name], marker="o", label=name)
            panels[1].set(xlabel="epoch", ylabel="accuracy")
            panels[1].legend()
        if shares:
            self._plot_routers(panels[-1], by_metric, shares)
        return figure

    def _plot_losses(self, panel: Any, by_metric: Mapping[str, Sequence[float]]) -> None:
        updates = range(1, len(self.steps) + 1)
        panel.plot(updates, [loss for loss, _ in self.steps], color="0.75", linewidth=0.8, label="loss of the step")
        ends = np.linspace(0, len(self.steps), len(self.epochs) + 1)[1:]
        for name in ("loss", "val_loss", "val_task_loss"):
            if name in by_metric:
                panel.plot(ends, by_metric[name], marker="o", markersize=3, label=name)
        panel.set(xlabel="update", ylabel="loss")
        rates = [rate for _, rate in self.steps]
        if len(set(rates)) > 1:
            beside = panel.twinx()
            beside.plot(updates, rates, color="0.5", linestyle=":", linewidth=0.8)
            beside.set(ylabel="learning rate (dotted)", ylim=(0, None))
        panel.legend()

    def _plot_routers(self, panel: Any, by_metric: Mapping[str, Sequence[float]], shares: Sequence[str]) -> None:
        epochs = range(1, len(self.epochs) + 1)
        for name in shares:
            panel.plot(epochs, by_metric[name], marker="o", markersize=3, label=name.replace("_", " "))
        panel.set(xlabel="epoch", ylabel="share", ylim=(0, 1.05))
        panel.legend()
        beside = panel.twinx()
        beside.plot(epochs, by_metric["expert_load_peak"], color="black", linestyle="--", linewidth=0.8)
        beside.set(ylabel="busiest expert's load / even share (dashed)", ylim=(1, None))


_SHARES = ("router_confidence", "expert_usage", "fraction_tokens_left_behind")
"""Metrics of routers between 0 and 1."""
