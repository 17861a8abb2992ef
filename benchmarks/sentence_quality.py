"""What narrower storage types do to vectors of sentences and to searches; float32 beside sentence-transformers."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.peers import SENTENCE_ENCODERS
from benchmarks.sentence_tasks import COMPARED, QUERIES, make_load
from benchmarks.text import cosine, start

REFERENCE, OTHER = "text-f32", "text-torch-f32"
TOP = 10


def run(
    model: pathlib.Path,
    engines: Sequence[str],
    *,
    threads: int,
    passages: int,
    compare: bool,
    folder: pathlib.Path | None,
) -> str:
    """Encode passages and queries by every engine and return the printed table.

    Args:
        model: folder of a sentence encoder.
        engines: keys of `SENTENCE_ENCODERS`; those of float32 are left out.
        threads: threads of every engine.
        passages: texts among which is searched.
        compare: whether to compare our float32 with sentence-transformers', too.
        folder: where `text-quality.json` and `text-quality.md` go, or None.
    """
    load = make_load(model, passages)
    narrow = [engine for engine in engines if SENTENCE_ENCODERS[engine].compute != "float32"]
    wanted = [REFERENCE, *([OTHER] if compare else []), *narrow]
    found: dict[str, dict[str, Any]] = {}
    lengths = {}
    for engine in tqdm(wanted, desc="encoding", leave=False):
        with contextlib.ExitStack() as stack:
            (worker,) = start(stack, [engine], threads, load)
            if engine in (REFERENCE, *narrow):
                found[engine] = {"W4": worker.answer("W4"), "queries": worker.answer("queries")}
            if compare and engine in (REFERENCE, OTHER):
                lengths[engine] = worker.answer("lengths")
    right = found[REFERENCE]
    results: dict[str, Any] = {}
    lines = []
    for engine in narrow:
        cosines = cosine(found[engine]["W4"], right["W4"])
        low, middle = np.quantile(cosines, [0.01, 0.5])
        overlap = top_overlap(found[engine]["queries"], found[engine]["W4"], right["queries"], right["W4"])
        results[engine] = {"p1": float(low), "median": float(middle), "least": float(cosines.min()), "overlap": overlap}
        numbers = (low, middle, cosines.min())
        lines.append([SENTENCE_ENCODERS[engine].label, *(f"{number:.5f}" for number in numbers), f"{overlap:.3f}"])
    header = ["engine", "cosine, 1st percentile", "median", "least", f"top-{TOP} overlap"]
    table = f"{report.markdown_table(header, lines)}\n\n{passages} passages, {QUERIES} queries, against our float32."
    if compare:
        difference = float(np.abs(lengths[REFERENCE] - lengths[OTHER]).max())
        least = float(cosine(lengths[REFERENCE], lengths[OTHER]).min())
        results["float32"] = {"largest_difference": difference, "least_cosine": least}
        count, most = COMPARED
        table += (
            f"\n\nOur float32 and {SENTENCE_ENCODERS[OTHER].label}, {count} texts of 1 to {most} tokens (cut to "
            f"{load.longest()}): largest difference {difference:.1e}, least cosine {least:.9f}."
        )
    if folder is not None:
        report.save(folder, "text-quality", {"threads": threads, "passages": passages, "measured": results}, table)
    return table


def top_overlap(queries: np.ndarray, passages: np.ndarray, right_queries: np.ndarray, right: np.ndarray) -> float:
    """Return which share of the nearest passages by the right vectors are among the nearest by others.

    Args:
        queries: vectors [Q, D] of length 1.
        passages: vectors [P, D] of length 1, P at least `TOP`.
        right_queries: the right ones [Q, D].
        right: the right ones [P, D].
    """
    nearest, wanted = (
        np.argpartition(-(of @ among.T), TOP - 1, axis=1)[:, :TOP]
        for of, among in ((queries, passages), (right_queries, right))
    )
    shared = [len(np.intersect1d(a, b)) for a, b in zip(nearest, wanted, strict=True)]
    return float(np.mean(shared)) / TOP
