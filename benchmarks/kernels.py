"""The matrix products of the Base model by themselves, beside the multiply-add rate of their storage type."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

from benchmarks import peak, report

COMPUTE = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16", "int8": "int8"}
"""What each storage type is multiplied in."""


def measure() -> list[dict[str, Any]]:
    """Run `benches/kernels.rs`; rates are of one thread, `of_peak` is of the best rate that `peak.c` reaches."""
    command = ["cargo", "bench", "--quiet", "--locked", "--no-default-features", "--bench", "kernels", "--", "--json"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]
    rates = peak.measure(1)
    float32 = peak.of_storage_type(rates, "float32")
    for row in rows:
        own = peak.of_storage_type(rates, COMPUTE[row["dtype"]])
        # Of the float32 peak of the same moment, which the clock of a shared machine moves as it does the product.
        row["of_peak"] = row["of_float32_peak"] * float32 / own if own else None
    return rows


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw the share of the peak, a group of bars per shape and a bar per storage type."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.0, 4.0), layout="constrained")
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    for number, dtype in enumerate(COMPUTE):
        bars = {tuple(row["shape"]): 100 * (row["of_peak"] or 0) for row in rows if row["dtype"] == dtype}
        places = [place + 0.2 * (number - 1.5) for place in range(len(shapes))]
        axes.bar(places, [bars[shape] for shape in shapes], 0.2, label=dtype)
    axes.set_xticks(range(len(shapes)), [" x ".join(map(str, shape)) for shape in shapes], rotation=40, ha="right")
    axes.set_ylabel("% of the storage type's measured peak")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", ncols=4, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def run(folder: pathlib.Path | None) -> str:
    """Measure and return the printed table; `kernels.json`, `.md` and `.svg` go to `folder`."""
    rows = measure()
    header = ["rows x k x n", *(f"{dtype}, G/s" for dtype in COMPUTE), *(f"{dtype}, of peak" for dtype in COMPUTE)]
    lines = []
    for shape in dict.fromkeys(tuple(row["shape"]) for row in rows):
        of = {row["dtype"]: row for row in rows if tuple(row["shape"]) == shape}
        shares = [f"{of[dtype]['of_peak']:.0%}" if of[dtype]["of_peak"] else "-" for dtype in COMPUTE]
        lines.append([" x ".join(map(str, shape)), *(f"{of[dtype]['rate'] / 1e9:.0f}" for dtype in COMPUTE), *shares])
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "kernels", {"rows": rows}, table)
        draw(rows, folder / "kernels.svg")
    return table
