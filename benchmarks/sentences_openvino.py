"""The exported encoder in OpenVINO."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sentence_batches import Batches
from benchmarks.sentence_files import model_file
from benchmarks.sentence_tasks import SentenceLoad, Task


class Peer:
    """A model compiled for each shape of given tokens, and one of any shape for texts."""

    def __init__(
        self,
        load: SentenceLoad,
        threads: int,
        *,
        same_weights: bool = True,
        kind: str = "onnx",
        hint: str = "f32",
    ) -> None:
        """Read the model, which is made at the first request.

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
        self._path = model_file(load, kind)
        self._core = openvino.Core()
        self._hints = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._requests:
            model = self._core.read_model(self._path)
            if shape:
                model.reshape({name: list(shape) for name in ("input_ids", "attention_mask")})
            self._requests[shape] = self._core.compile_model(model, "CPU", self._hints).create_infer_request()
        return self._requests[shape]

    def __call__(self, task: Task) -> np.ndarray:
        """Return vectors [N, D]."""
        request = self._request(() if task.ids is None else task.ids.shape)

        def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            result = request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True, share_outputs=False)
            return np.asarray(result[0])

        return self._batches(task, run)
