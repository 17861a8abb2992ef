"""Figures of the scaling sweeps."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PEERS

if TYPE_CHECKING:
    from benchmarks.scaling import Sweep


def draw(sweep: Sweep, rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw throughput against the swept quantity, a line per engine and series, into `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    value = f"{sweep.per}s_per_second"
    for peer in sweep.peers:
        for series in dict.fromkeys(row["series"] for row in rows):
            line = [row for row in rows if (row["peer"], row["series"]) == (peer, series)]
            label = PEERS[peer].label + (f", {series}" if series else "")
            if line:
                axes.plot([r["x"] for r in line], [r[value] for r in line], "o-", label=label, markersize=4)
    axes.set_xscale("log", base=2)
    ticks = sorted({row["x"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(sweep.x_label)
    axes.set_ylabel(f"{sweep.per}s per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
