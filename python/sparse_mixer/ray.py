"""Files and data sets of texts to vectors on a cluster of Ray (extra ``ray``).

`embed` gives each node files to encode, with all of the node's threads; `Embedder` and `embed_dataset` are for
pipelines of Ray Data. Paths are those of a file system that all nodes see.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_mixer._core.checks import as_positive
from sparse_mixer._core.extras import require
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.embeddings.shard_names import source_files, targets_in
from sparse_mixer.embeddings.shards import Shard, embed_shard
from sparse_mixer.embeddings.targets import EMBEDDING
from sparse_mixer.text.encoder import TextEncoder

# How often a file is tried whose process ends without a word, for want of memory, say.
_TRIES = 3
# Seconds after which nodes are counted again.
_PAUSE = 2.0


class Summary(NamedTuple):
    """What became of a job.

    Attributes:
        files: How many files of vectors there are.
        rows: How many vectors they have.
        encoded: How many of them this call encoded; the others were there.
        seconds: How long it took.
        failed: What went wrong, by the name of the source.
    """

    files: int
    rows: int
    encoded: int
    seconds: float
    failed: dict[str, str]


def embed(
    paths: PathLike | Sequence[PathLike],
    target: PathLike,
    model: TextEncoder | PathLike,
    *,
    format: str = "parquet",  # noqa: A002 (the command's name)
    num_cpus: int | None = None,
    dtype: Any = None,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Any,
) -> Summary:
    """Encode files on all nodes of a cluster, one process per node, by `sparse_mixer.embeddings.embed_shard`.

    A node, a process or the caller may die at any time: files that were not whole are encoded again, by another node
    or by the next call; each row is there once, with the bits of a single process. A job that is done is passed over
    in seconds.

    Args:
        paths: Files, folders or patterns.
        target: Folder for the files of vectors.
        model: A folder that all nodes see, or a `TextEncoder`, which is sent to them.
        format: ``"parquet"``, ``"npy"`` or ``"jsonl"``.
        num_cpus: CPUs and threads per process; None for all of a node. Nodes with fewer are left out.
        dtype: Storage type of the weights, for a folder.
        progress: Called with the number of files that are done, of all files, and of rows.
        **options: As for `embed_shard`.

    Returns:
        What was done; files that could not be encoded are in ``failed``, and the others are there.

    Raises:
        ImportError: `ray` is not installed.
        ValueError: Paths or arguments that cannot be.
        RuntimeError: No node has so many CPUs.
    """
    ray = require("ray", "ray")
    begin = time.monotonic()
    sources = source_files([paths] if isinstance(paths, str | bytes | os.PathLike) else list(paths))
    targets = targets_in(file_name(target, "target"), sources, format)
    if not ray.is_initialized():
        ray.init()
    shared = ray.put(model) if isinstance(model, TextEncoder) else os.path.abspath(file_name(model, "model"))
    cpus = None if num_cpus is None else as_positive("num_cpus", num_cpus)
    files = [(os.path.abspath(s), os.path.abspath(t)) for s, t in zip(sources, targets, strict=True)]
    job = _Job(ray, files, shared, cpus, {"dtype": dtype}, options)
    try:
        shards, failed = job.run(progress)
    finally:
        job.end()
    rows, encoded = sum(shard.rows for shard in shards), sum(shard.encoded for shard in shards)
    return Summary(len(shards), rows, encoded, time.monotonic() - begin, failed)


class _Worker:
    """A process that encodes files; it lives as long as the job."""

    def __init__(self, model: Any, threads: int, loading: dict[str, Any]) -> None:
        if isinstance(model, TextEncoder):
            self._model = model
            self._model.encoder.num_threads = threads
        else:
            self._model = TextEncoder(model, num_threads=threads, **loading)

    def run(self, source: str, target: str, options: dict[str, Any]) -> Shard:
        """Encode a file."""
        return embed_shard(source, target, self._model, **options)


class _Job:
    """Files that wait, and the processes that work on others."""

    def __init__(
        self,
        ray: Any,
        files: Sequence[tuple[str, str]],
        model: Any,
        cpus: int | None,
        loading: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self._ray, self._model, self._cpus, self._loading, self._options = ray, model, cpus, loading, options
        self._waiting, self._total = deque(files), len(files)
        self._workers: dict[str, Any] = {}
        # What each process works on, by the promise of its result.
        self._running: dict[Any, tuple[str, tuple[str, str]]] = {}
        self._deaths: dict[str, int] = {}

    def run(self, progress: Callable[[int, int, int], None] | None) -> tuple[list[Shard], dict[str, str]]:
        """Work until nothing waits; the files that are done, and why others are not."""
        shards: list[Shard] = []
        failed: dict[str, str] = {}
        while self._waiting or self._running:
            self._start()
            done, _ = self._ray.wait(list(self._running), timeout=_PAUSE) if self._running else ([], [])
            for promise in done:
                node, file = self._running.pop(promise)
                try:
                    shards.append(Shard(*self._ray.get(promise)))
                except self._ray.exceptions.RayTaskError as error:
                    failed[file[0]] = str(error.cause)
                except self._ray.exceptions.RayError as error:  # of the process or its node, not of the file
                    self._ray.kill(self._workers.pop(node))
                    self._deaths[file[0]] = self._deaths.get(file[0], 0) + 1
                    if self._deaths[file[0]] < _TRIES:
                        self._waiting.appendleft(file)
                    else:
                        failed[file[0]] = f"its process ended {_TRIES} times: {error}"
                if progress is not None:
                    progress(len(shards) + len(failed), self._total, sum(shard.rows for shard in shards))
        return shards, failed

    def end(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._workers.values():
            self._ray.kill(worker)

    def _start(self) -> None:
        """Give files to nodes that have none; nodes come and go."""
        busy = {node for node, _ in self._running.values()}
        nodes = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]}
        usable = {node: cpus for node, cpus in nodes.items() if cpus >= (self._cpus or 1)}
        if not usable and not busy:
            raise RuntimeError(f"num_cpus: no node has {self._cpus or 1}; they have {sorted(nodes.values())}")
        for node, cpus in usable.items():
            if node in busy or not self._waiting:
                continue
            if node not in self._workers:
                self._workers[node] = self._worker(node, self._cpus or cpus)
            file = self._waiting.popleft()
            promise = self._workers[node].run.remote(*file, self._options)
            self._running[promise] = (node, file)

    def _worker(self, node: str, cpus: int) -> Any:
        strategy = require("ray.util.scheduling_strategies", "ray").NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._ray.remote(_Worker).options(num_cpus=cpus, scheduling_strategy=strategy, max_restarts=0)
        return actor.remote(self._model, cpus, self._loading)


class Embedder:
    """What `Dataset.map_batches` makes of a model: tables with texts in, tables with vectors beside them out.

    Vectors are Arrow's lists of a fixed size, which every reader of parquet knows.

    Example::

        dataset.map_batches(Embedder, fn_constructor_args=("all-MiniLM-L6-v2",), batch_format="pyarrow",
                            concurrency=1, num_cpus=15, batch_size=4096)
    """

    def __init__(
        self,
        model: TextEncoder | PathLike,
        *,
        column: str = "text",
        output_column: str = EMBEDDING,
        num_threads: int | None = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        """Load the model, in the process that uses it.

        Args:
            model: A folder that all nodes see, or a `TextEncoder`.
            column: The column that has the texts.
            output_column: The column of the vectors.
            num_threads: Most threads; None for the CPUs that Ray gave the process.
            dtype: Storage type of the weights, for a folder.
            **options: As for `TextEncoder.encode_document`.

        Raises:
            ValueError: The process has all CPUs of the cluster: those who read would wait for ever.
        """
        ray = require("ray", "ray")
        self._pa = require("pyarrow", "ray")
        given = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)) if ray.is_initialized() else 0
        if given:
            _check_pool(ray, 1, given)
        threads = num_threads or given or None
        self._model = model if isinstance(model, TextEncoder) else TextEncoder(model, num_threads=threads, dtype=dtype)
        self._column, self._output = column, output_column
        self._options = {"on_truncation": "ignore", **options}

    def __call__(self, table: Any) -> Any:
        """The table with another column.

        Raises:
            ValueError: It has no such column.
            TypeError: It is no table of Arrow.
        """
        if not isinstance(table, self._pa.Table):
            raise TypeError(f"batch: got {type(table).__name__}, expected a table; pass batch_format='pyarrow'")
        if self._column not in table.column_names:
            raise ValueError(f"column: got {self._column!r}, expected one of {table.column_names}")
        vectors = np.ascontiguousarray(self._model.encode_document(table[self._column].to_pylist(), **self._options))
        kind = self._pa.list_(self._pa.field("element", self._pa.from_numpy_dtype(vectors.dtype)), vectors.shape[1])
        flat = self._pa.array(vectors.reshape(-1))
        return table.append_column(self._output, self._pa.FixedSizeListArray.from_arrays(flat, type=kind))


def embed_dataset(
    dataset: Any,
    model: TextEncoder | PathLike,
    *,
    concurrency: int = 1,
    num_cpus: int | None = None,
    rows: int = 4096,
    **options: Any,
) -> Any:
    """`dataset.map_batches(Embedder, ...)` with a pool that leaves a CPU to those who read.

    Args:
        dataset: A `ray.data.Dataset`.
        model: As for `Embedder`.
        concurrency: How many processes; one per node is best, since each has the weights in its memory.
        num_cpus: CPUs and threads of each; None for an equal part of all but one.
        rows: Rows per call.
        **options: As for `Embedder`.

    Returns:
        The data set with vectors.

    Raises:
        ValueError: The pool would leave less than one CPU: the job would hang.
    """
    ray = require("ray", "ray")
    count = as_positive("concurrency", concurrency)
    cpus = max(1, (_cluster_cpus(ray) - 1) // count) if num_cpus is None else as_positive("num_cpus", num_cpus)
    _check_pool(ray, count, cpus)
    return dataset.map_batches(
        Embedder,
        fn_constructor_args=(model,),
        fn_constructor_kwargs=options,
        batch_format="pyarrow",
        batch_size=rows,
        concurrency=count,
        num_cpus=cpus,
    )


def _cluster_cpus(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def _check_pool(ray: Any, count: int, cpus: int) -> None:
    total = _cluster_cpus(ray)
    if count * cpus > total - 1:
        raise ValueError(
            f"num_cpus: {count} x {cpus} of {total} CPUs leave none to the tasks that read, which would wait for ever; "
            f"expected at most {total - 1} in all"
        )
