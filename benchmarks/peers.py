"""The engines that can be measured, by name."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Protocol


class Load(Protocol):
    """What engines are built for and called with."""

    def inputs(self, batch: Any) -> Any:
        """Return what an engine is called with: so many sequences, or the task of this name."""
        ...


class Engine(Protocol):
    """An encoder ready to be called with numpy arrays."""

    def __call__(self, inputs: Any) -> Any:
        """Compute what the kind of engine does.

        Encoders return `sequence_output` [batch, sequence, hidden] and `pooled_output` [batch, hidden]; trainers the
        loss; encoders of sentences vectors [batch, hidden].
        """
        ...


@dataclasses.dataclass(frozen=True)
class PeerSpec:
    """How to make one engine: a module with a class `Peer`, its options, and the peak it is held against."""

    label: str
    module: str
    options: dict[str, Any]
    compute: str

    def build(self, workload: Load, threads: int, same_weights: bool) -> Engine:
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

_TRANSFORMERS = "benchmarks.peer_transformers"

BERTS = {
    "ours-f32": PEERS["ours-f32"],
    "torch-f32": PeerSpec("PyTorch float32", _TRANSFORMERS, {"dtype": "float32"}, "float32"),
    "tf": PEERS["tf"],
    "tf-xla": PEERS["tf-xla"],
    "onnx-f32": PeerSpec("ONNX Runtime float32", _ONNX, {"kind": "onnx-fused"}, "float32"),
    "openvino-f32": PEERS["openvino-f32"],
    "ours-bf16": PEERS["ours-bf16"],
    "torch-bf16": PeerSpec("PyTorch bfloat16", _TRANSFORMERS, {"dtype": "bfloat16"}, "bfloat16"),
    "tf-bf16": PEERS["tf-bf16"],
    "openvino-bf16": PEERS["openvino-bf16"],
    "ours-int8": PEERS["ours-int8"],
    "onnx-int8": PeerSpec("ONNX Runtime int8 (dynamic)", _ONNX, {"kind": "onnx-int8"}, "int8"),
    "openvino-int8": PEERS["openvino-int8"],
}
"""Engines that take a BERT, by precision."""

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

_SENTENCES = "benchmarks.sentences_"

SENTENCE_ENCODERS = {
    "text-f32": PeerSpec("sparse_mixer float32", f"{_SENTENCES}ours", {"dtype": "float32"}, "float32"),
    "text-torch-f32": PeerSpec("sentence-transformers float32", f"{_SENTENCES}torch", {"dtype": "float32"}, "float32"),
    "text-onnx-f32": PeerSpec("ONNX Runtime float32", f"{_SENTENCES}onnx", {}, "float32"),
    "text-openvino-f32": PeerSpec("OpenVINO float32", f"{_SENTENCES}openvino", {}, "float32"),
    "text-fastembed": PeerSpec("fastembed float32", f"{_SENTENCES}fastembed", {}, "float32"),
    "text-bf16": PeerSpec("sparse_mixer bfloat16", f"{_SENTENCES}ours", {"dtype": "bfloat16"}, "bfloat16"),
    "text-torch-bf16": PeerSpec(
        "sentence-transformers bfloat16", f"{_SENTENCES}torch", {"dtype": "bfloat16"}, "bfloat16"
    ),
    "text-openvino-bf16": PeerSpec("OpenVINO bfloat16", f"{_SENTENCES}openvino", {"hint": "bf16"}, "bfloat16"),
    "text-int8": PeerSpec("sparse_mixer int8", f"{_SENTENCES}ours", {"dtype": "int8"}, "int8"),
    "text-onnx-int8": PeerSpec("ONNX Runtime int8 (dynamic)", f"{_SENTENCES}onnx", {"kind": "onnx-int8"}, "int8"),
    "text-openvino-int8": PeerSpec(
        "OpenVINO int8 (NNCF), hint f32", f"{_SENTENCES}openvino", {"kind": "openvino-int8"}, "int8"
    ),
    "text-openvino-int8-bf16": PeerSpec(
        "OpenVINO int8 (NNCF), hint bf16", f"{_SENTENCES}openvino", {"kind": "openvino-int8", "hint": "bf16"}, "int8"
    ),
}
"""Engines that make vectors of texts, by precision."""

FILE_ENCODERS = {"files": PeerSpec("sparse_mixer", "benchmarks.files_ours", {}, "float32")}
"""Engines that make files of vectors of files of texts."""

ENGINES = PEERS | BERTS | TRAINERS | SENTENCE_ENCODERS | FILE_ENCODERS
"""What a worker can be."""
