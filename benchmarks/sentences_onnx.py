"""The exported encoder in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.exported_files import model_file
from benchmarks.sentence_batches import Batch, Batches
from benchmarks.sentence_tasks import SentenceLoad, Task


class Peer:
    """A call of one batch shares its work among all threads; of several batches each thread has its own."""

    def __init__(
        self, load: SentenceLoad, threads: int, *, same_weights: bool = True, kind: str = "onnx-fused"
    ) -> None:
        """Load the model, which is made at the first request; `kind` is "onnx-fused" or "onnx-int8"."""
        del same_weights
        self._batches = Batches(load)
        self._pool = ThreadPoolExecutor(threads)
        path = model_file(load, kind)
        self._shared, self._single = _session(path, threads), _session(path, 1)

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]."""
        return self._batches(task, self._run)

    def _run(self, batches: Sequence[Batch]) -> list[np.ndarray]:
        if len(batches) == 1:
            return [self._shared.run(None, batches[0])[0]]
        return list(self._pool.map(lambda batch: self._single.run(None, batch)[0], batches))


def _session(path: Any, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
