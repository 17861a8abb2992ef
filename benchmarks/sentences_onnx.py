"""The exported encoder in ONNX Runtime."""

from __future__ import annotations

import numpy as np

from benchmarks.sentence_batches import Batches
from benchmarks.sentence_files import model_file
from benchmarks.sentence_tasks import SentenceLoad, Task


class Peer:
    """One session for all shapes; `kind` is "onnx-fused" or "onnx-int8"."""

    def __init__(
        self, load: SentenceLoad, threads: int, *, same_weights: bool = True, kind: str = "onnx-fused"
    ) -> None:
        """Load the model, which is made at the first request."""
        import onnxruntime

        del same_weights
        self._batches = Batches(load)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        path = model_file(load, kind)
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]."""
        return self._batches(task, self._run)

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        (vectors,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(vectors)
