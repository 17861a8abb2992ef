"""The model that `encoder.to_onnx` writes, or a BERT exported by PyTorch, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.exported_files import model_file
from benchmarks.peer_ours import build_encoder
from benchmarks.workload import Workload

OUTPUTS = ("sequence_output", "pooled_output")


class Peer:
    """One model for all batch sizes; `runtime` is "onnxruntime" or "openvino", `precision` OpenVINO's."""

    def __init__(
        self,
        workload: Workload,
        threads: int,
        *,
        same_weights: bool = True,
        runtime: str = "onnxruntime",
        precision: str = "f32",
        kind: str = "",
    ) -> None:
        """Export the encoder and load the model; the encoder and the file are gone afterwards.

        With a `kind`, one of `exported_files.KINDS`, load the BERT that PyTorch exports.
        """
        load = self._onnxruntime if runtime == "onnxruntime" else self._openvino
        if kind:
            self._model = load(model_file(workload, kind), threads, precision)
            return
        encoder = build_encoder(workload, threads, same_weights, "float32")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "encoder.onnx"
            start = time.perf_counter()
            encoder.to_onnx(path, outputs=OUTPUTS)
            self.export_seconds = time.perf_counter() - start
            self.file_bytes = path.stat().st_size
            del encoder
            self._model = load(path, threads, precision)

    @staticmethod
    def _onnxruntime(path: pathlib.Path, threads: int, precision: str) -> Any:
        import onnxruntime

        del precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(list(OUTPUTS), inputs)

    @staticmethod
    def _openvino(path: pathlib.Path, threads: int, precision: str) -> Any:
        import openvino

        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()

        def call(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            result = request.infer(inputs, share_inputs=True, share_outputs=True)
            return [result[name] for name in OUTPUTS]

        return call

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        sequence, pooled = self._model(inputs)
        return sequence, pooled
