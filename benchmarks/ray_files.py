"""`sparse_mixer.ray.embed` beside `embed_shard` in one process: documents per second on the same files.

Ray runs on this machine with one process of as many threads. The two take turns, file by file, so that a slow minute
of the machine hits both: `embed` reports each file that is done, and while it waits for its report to be taken, with
nothing of it running, the other process encodes that file.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.files_ours import FileLoad
from benchmarks.serve import WORDS, make_model
from benchmarks.timing import median_ratio
from benchmarks.worker import Worker

ALONE = 3
"""Files that one process encodes before Ray is started, and again after it has ended."""
MARGIN = 1.1
"""So many times the files that the first ones say are needed."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds per file. The first file of each engine is not among them."""

    one: list[float]
    """One process."""
    ray: list[float]
    """Ray, for the same files."""
    alone: list[float]
    """One process with no Ray on the machine."""
    start: tuple[float, float]
    """Not counted: starting Ray, and until its process has been started and has encoded its first file."""


def run(
    model: pathlib.Path | None,
    threads: int,
    *,
    dtype: str,
    minutes: float,
    rows: int,
    words: Sequence[int],
    folder: pathlib.Path | None,
) -> str:
    """Measure and return the table.

    Args:
        model: Folder of a model; None for one of all-MiniLM-L6-v2's size with random weights.
        threads: Threads of each engine.
        dtype: Storage type of the weights.
        minutes: How long each of the two shall encode at least.
        rows: Texts per file.
        words: Least and largest number of words of a text.
        folder: Where `ray.json` and `ray.md` go, or None.

    Raises:
        RuntimeError: Ray could not encode a file, or its vectors are others.
    """
    with tempfile.TemporaryDirectory() as place:
        here = pathlib.Path(place)
        load = FileLoad(model or make_model(here), dtype)
        for name in ("texts", "one", "ray", "alone"):
            (here / name).mkdir()
        with Worker("files", threads) as one:
            one.build(load)
            turns = _measure(load, one, here, threads, 60 * minutes, rows, words)
        count = 0
        for path in sorted((here / "one").iterdir()):
            count += same_vectors(path, here / "ray" / path.name)
    text = table(turns, rows, threads, dtype, count)
    if folder is not None:
        about = {"threads": threads, "dtype": dtype, "rows_per_file": rows, "words": list(words)}
        report.save(folder, "ray", {**about, "seconds": dataclasses.asdict(turns)}, text)
    return text


def _measure(
    load: FileLoad, one: Worker, here: pathlib.Path, threads: int, seconds: float, rows: int, words: Sequence[int]
) -> Turns:
    import ray
    from sparse_mixer.ray import embed

    sources = [_texts(here / "texts", number, rows, words) for number in range(1 + ALONE)]

    def alone() -> list[float]:
        files = [(source, here / "alone" / source.name) for source in sources[: 1 + ALONE]]
        return [one.call(file)[0] for file in files][1:]

    before = alone()
    needed = 1 + max(ALONE, math.ceil(seconds * MARGIN / statistics.median(before)))
    sources += [_texts(here / "texts", number, rows, words) for number in range(len(sources), needed)]

    begin = time.perf_counter()
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=threads, object_store_memory=10**8, **quiet)
    starting = time.perf_counter() - begin
    of_ray: list[float] = []
    of_one: list[float] = []
    with tqdm(total=needed, desc="files", leave=False) as bar:

        def progress(done: int, total: int, texts: int) -> None:
            """A file is done on Ray, and no other is begun."""
            nonlocal begin
            of_ray.append(time.perf_counter() - begin)
            source = sources[done - 1]
            of_one.extend(one.call((source, here / "one" / source.name)))
            bar.update()
            begin = time.perf_counter()

        begin = time.perf_counter()
        try:
            options: dict[str, Any] = {"num_cpus": threads, "dtype": load.dtype, "progress": progress}
            summary = embed(sources, here / "ray", load.model, **options)
        finally:
            ray.shutdown()
    if summary.failed:
        raise RuntimeError(f"Ray: files could not be encoded: {summary.failed}")
    return Turns(of_one[1:], of_ray[1:], before + alone(), (starting, of_ray[0]))


def _texts(folder: pathlib.Path, number: int, rows: int, words: Sequence[int]) -> pathlib.Path:
    """Write a file of texts, always the same for one number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(number)
    lengths = random.integers(words[0], words[1] + 1, rows)
    path = folder / f"{number:05}.parquet"
    pq.write_table(pa.table({"text": [" ".join(random.choice(WORDS, length)) for length in lengths]}), path)
    return path


def same_vectors(path: pathlib.Path, other: pathlib.Path) -> int:
    """Compare two files bit by bit; return how many vectors they have."""
    import pyarrow.parquet as pq

    columns = [pq.read_table(file)["embedding"].combine_chunks().flatten().to_numpy() for file in (path, other)]
    if not np.array_equal(*(column.view(np.uint32) for column in columns)):
        raise RuntimeError(f"{path.name}: Ray's vectors are not those of one process")
    return int(pq.read_metadata(path).num_rows)


def table(turns: Turns, rows: int, threads: int, dtype: str, count: int) -> str:
    """Return rates and ratios.

    Args:
        turns: What was measured.
        rows: Texts per file.
        threads: Threads of each engine.
        dtype: Storage type of the weights.
        count: Vectors that were compared.
    """
    kinds = {
        f"one process, {threads} threads": turns.one,
        f"Ray, one process of {threads} threads": turns.ray,
        "one process, no Ray on the machine": turns.alone,
    }
    rates = {name: rows * len(seconds) / sum(seconds) for name, seconds in kinds.items()}
    lines = [
        [f"{name}, {dtype}", f"{rates[name]:.1f}", str(len(seconds)), f"{sum(seconds) / 60:.2f}"]
        for name, seconds in kinds.items()
    ]
    by_file = [one / of_ray for one, of_ray in zip(turns.one, turns.ray, strict=True)]
    one, of_ray, alone = rates.values()
    return "\n".join(
        [
            report.markdown_table(["", "documents/s", "files", "minutes"], lines),
            "",
            f"Ray / one process: {of_ray / one:.3f}; file by file {median_ratio(turns.one, turns.ray):.3f} (median), "
            f"{min(by_file):.3f} to {max(by_file):.3f}. Ray / one process with no Ray on the machine: "
            f"{of_ray / alone:.3f}.",
            "",
            f"Not counted: {turns.start[0]:.1f} s to start Ray, {turns.start[1]:.1f} s until it has started its "
            f"process and encoded a first file. {count} vectors have the same bits.",
        ]
    )
