"""Sums and weights of metrics over batches."""

from __future__ import annotations

from collections.abc import Mapping


class Metrics(dict[str, tuple[float, float]]):
    """Sums and weights by name, of one batch or of many: ``metrics[name] = (sum, weight)``."""

    def add(self, other: Mapping[str, tuple[float, float]]) -> None:
        """Count another batch."""
        for name, (total, weight) in other.items():
            mine = self.get(name, (0.0, 0.0))
            self[name] = (mine[0] + total, mine[1] + weight)

    def means(self) -> dict[str, float]:
        """Sum by weight of every metric; NaN where the weight is 0."""
        return {name: total / weight if weight else float("nan") for name, (total, weight) in self.items()}

    def __repr__(self) -> str:
        shown = [f"{name} {value:.4g}" for name, value in self.means().items() if "/" not in name]
        return f"<Metrics: {', '.join(shown) or 'none'}>"
