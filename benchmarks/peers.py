"""The engines that can be measured, by name."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Protocol

import numpy as np

from benchmarks.workload import Workload


class Engine(Protocol):
    """An encoder ready to be called with numpy arrays."""

    def __call__(self, inputs: dict[str, np.ndarray]) -> Any:
        """Return `sequence_output` [batch, sequence, hidden] and `pooled_output` [batch, hidden]; trainers the loss."""
        ...


@dataclasses.dataclass(frozen=True)
class PeerSpec:
    """How to make one engine: a module with a class `Peer`, its options, and the peak it is held against."""

    label: str
    module: str
    options: dict[str, Any]
    compute: str

    def build(self, workload: Workload, threads: int, same_weights: bool) -> Engine:
        """Import the engine's module and construct it; called inside the engine's own process."""
        peer = importlib.import_module(self.module).Peer
        engine: Engine = peer(workload, threads, same_weights=same_weights, **self.options)
        return engine


_OURS, _TENSORFLOW, _OPENVINO, _ONNX = (
    f"benchmarks.peer_{name}" for name in ("ours", "tensorflow", "openvino", "onnx")
)

PEERS = {
    "ours-f32": PeerSpec("sparse_mixer float32", _OURS, {"dtype": "float32"}, "float32"),
    "ours-bf16": PeerSpec("sparse_mixer bfloat16", _OURS, {"dtype": "bfloat16"}, "bfloat16"),
    "ours-int8": PeerSpec("sparse_mixer int8", _OURS, {"dtype": "int8"}, "int8"),
    "keras": PeerSpec("sparse_mixer in Keras", _TENSORFLOW, {"layer": "sparse_mixer"}, "float32"),
    "torch": PeerSpec("sparse_mixer in PyTorch", "benchmarks.peer_torch", {}, "float32"),
    "tf": PeerSpec("TensorFlow graph", _TENSORFLOW, {}, "float32"),
    "tf-xla": PeerSpec("TensorFlow XLA", _TENSORFLOW, {"jit": True}, "float32"),
    "tf-bf16": PeerSpec("TensorFlow mixed_bfloat16", _TENSORFLOW, {"policy": "mixed_bfloat16"}, "bfloat16"),
    "openvino-f32": PeerSpec("OpenVINO float32", _OPENVINO, {"precision": "float32"}, "float32"),
    "openvino-bf16": PeerSpec("OpenVINO bfloat16", _OPENVINO, {"precision": "bfloat16"}, "bfloat16"),
    "onnxruntime": PeerSpec("our export in ONNX Runtime", _ONNX, {"runtime": "onnxruntime"}, "float32"),
    "onnx-openvino": PeerSpec("our export in OpenVINO", _ONNX, {"runtime": "openvino"}, "float32"),
    "openvino-int8": PeerSpec("OpenVINO int8 (NNCF)", _OPENVINO, {"precision": "int8"}, "int8"),
}
"""All engines, in the order of the printed table."""

_TRAINERS = [f"benchmarks.trainer_{name}" for name in ("ours", "tensorflow")]

TRAINERS = {
    "train-f32": PeerSpec("sparse_mixer float32", _TRAINERS[0], {}, "float32"),
    "train-f32-recompute": PeerSpec("sparse_mixer float32, recomputing", _TRAINERS[0], {"recompute": True}, "float32"),
    "train-bf16": PeerSpec("sparse_mixer bfloat16", _TRAINERS[0], {"dtype": "bfloat16"}, "bfloat16"),
    "train-keras": PeerSpec("sparse_mixer in Keras", _TRAINERS[1], {"layer": "sparse_mixer"}, "float32"),
    "train-torch": PeerSpec("sparse_mixer in PyTorch", "benchmarks.trainer_torch", {}, "float32"),
    "train-tf": PeerSpec("TensorFlow graph", _TRAINERS[1], {}, "float32"),
    "train-tf-bf16": PeerSpec("TensorFlow mixed_bfloat16", _TRAINERS[1], {"policy": "mixed_bfloat16"}, "bfloat16"),
}
"""Engines whose call is a training step."""
