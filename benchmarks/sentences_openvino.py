"""The exported encoder in OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.exported_files import model_file
from benchmarks.sentence_batches import Batch, Batches
from benchmarks.sentence_tasks import SentenceLoad, Task


class Peer:
    """A call of one batch shares its work among all threads; of several batches each thread has its own."""

    def __init__(
        self,
        load: SentenceLoad,
        threads: int,
        *,
        same_weights: bool = True,
        kind: str = "onnx",
        hint: str = "f32",
    ) -> None:
        """Compile the model, which is made at the first request.

        Args:
            load: the folder and its tasks.
            threads: threads of the engine.
            same_weights: there for other engines.
            kind: "onnx" or "openvino-int8".
            hint: precision of what is not quantised, "f32" or "bf16".
        """
        import openvino

        del same_weights
        self._batches = Batches(load)
        self._path, self._threads, self._hint = model_file(load, kind), threads, hint
        self._core = openvino.Core()
        self._queue = openvino.AsyncInferQueue(self._compile((), threads), threads)
        self._queue.set_callback(_keep)
        self._requests: dict[tuple[int, ...], Any] = {}

    def _compile(self, shape: tuple[int, ...], streams: int) -> Any:
        """Compile for one shape, or for any if it is empty."""
        model = self._core.read_model(self._path)
        if shape:
            model.reshape({name: list(shape) for name in ("input_ids", "attention_mask")})
        hints = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": self._hint,
        }
        return self._core.compile_model(model, "CPU", hints)

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]."""
        shape = () if task.ids is None else task.ids.shape

        def run(batches: Sequence[Batch]) -> list[np.ndarray]:
            if len(batches) == 1:
                return [self._one(batches[0], shape)]
            vectors: dict[int, np.ndarray] = {}
            for place, batch in enumerate(batches):
                self._queue.start_async(batch, (vectors, place), share_inputs=True)
            self._queue.wait_all()
            return [vectors[place] for place in range(len(batches))]

        return self._batches(task, run)

    def _one(self, batch: Batch, shape: tuple[int, ...]) -> np.ndarray:
        if shape not in self._requests:
            self._requests[shape] = self._compile(shape, 1).create_infer_request()
        return np.array(self._requests[shape].infer(batch, share_inputs=True, share_outputs=True)[0])


def _keep(request: Any, place: tuple[dict[int, np.ndarray], int]) -> None:
    vectors, number = place
    vectors[number] = np.array(request.get_output_tensor(0).data)
