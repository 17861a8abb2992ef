"""OpenVINO's CPU plugin on a model converted from TensorFlow's SavedModel, or on a BERT exported by PyTorch."""

from __future__ import annotations

import hashlib
import pathlib
import tempfile
from typing import Any

import numpy as np

from benchmarks.bert_load import Bert
from benchmarks.cache import cache_directory, run_apart
from benchmarks.exported_files import model_file, quantize
from benchmarks.workload import Workload

OUTPUTS = ("sequence_output", "pooled_output")


def _convert(workload: Workload, batch: int, path: str, threads: int) -> None:
    """Write the float32 OpenVINO model of `workload` at a fixed batch size to `path`."""
    import openvino

    from benchmarks.peer_tensorflow import export_saved_model

    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        export_saved_model(workload, folder, threads)
        shape = [batch, workload.max_sequence_length]
        model = openvino.convert_model(folder, input=dict.fromkeys(workload.inputs(1), shape))
        openvino.save_model(model, path, compress_to_fp16=False)


def _quantize(workload: Workload, batch: int, source: str, path: str) -> None:
    """Write the post-training int8 quantisation of the model in `source` to `path`."""
    quantize(workload.calibration(batch), source, path)


def _model_file(workload: Workload, batch: int, precision: str, threads: int) -> pathlib.Path:
    """Return the converted (and quantised) model of this workload, made at the first request."""
    import openvino

    if isinstance(workload, Bert):
        return model_file(workload, "openvino-int8" if precision == "int8" else "onnx")
    key = hashlib.sha256(repr((workload, batch, openvino.__version__)).encode()).hexdigest()[:16]
    plain = cache_directory() / f"{key}.xml"
    if not plain.exists():
        run_apart(_convert, workload, batch, str(plain), threads)
    if precision != "int8":
        return plain
    quantized = cache_directory() / f"{key}-int8.xml"
    if not quantized.exists():
        run_apart(_quantize, workload, batch, str(plain), str(quantized))
    return quantized


class Peer:
    """One compiled model per batch size; `precision` is "float32", "bfloat16" or "int8"."""

    def __init__(
        self, workload: Workload, threads: int, *, same_weights: bool = True, precision: str = "float32"
    ) -> None:
        """Remember what to compile; the model of a batch size is made at its first call.

        The converted model always holds the shared weights; `same_weights` is there for the other peers.
        """
        del same_weights
        self._workload = workload
        self._threads = threads
        self._precision = precision
        self._requests: dict[int, Any] = {}

    def _compile(self, batch: int) -> Any:
        import openvino

        path = _model_file(self._workload, batch, self._precision, self._threads)
        hints = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if self._precision == "bfloat16" else "f32",
        }
        core = openvino.Core()
        model = core.read_model(path)
        if model.is_dynamic():
            model.reshape({name: list(array.shape) for name, array in self._workload.inputs(batch).items()})
        return core.compile_model(model, "CPU", hints).create_infer_request()

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        batch = len(inputs["input_word_ids"])
        if batch not in self._requests:
            self._requests[batch] = self._compile(batch)
        result = self._requests[batch].infer(inputs, share_inputs=True, share_outputs=True)
        sequence, pooled = (result[name] for name in OUTPUTS)
        return sequence, pooled
