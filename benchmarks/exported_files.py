"""Models of the `transformers` package as ONNX and OpenVINO models, made at the first request and kept."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.cache import cache_directory, run_apart

KINDS = ("onnx", "onnx-fused", "onnx-int8", "openvino-int8")
"""The exported model; that one fused by ONNX Runtime's optimiser, with dynamic int8, and with NNCF's int8."""

_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "openvino")


class Exportable(Protocol):
    """What knows how its model is exported."""

    model: pathlib.Path
    """The folder."""

    def export(self, path: str) -> None:
        """Write the ONNX model."""
        ...

    def calibration(self) -> Sequence[Mapping[str, np.ndarray]]:
        """Return inputs of the ONNX model for post-training quantisation, none of which is measured."""
        ...


def model_file(load: Exportable, kind: str) -> pathlib.Path:
    """Return a model with the inputs and outputs that `load.export` gives it.

    Args:
        load: the folder, and how its model is exported.
        kind: one of `KINDS`.
    """
    makers = {"onnx": _export, "onnx-fused": _fuse, "onnx-int8": _quantize_dynamically, "openvino-int8": _quantize}
    weights = (load.model / "model.safetensors").stat()
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    found = (type(load).__name__, str(load.model.resolve()), weights.st_size, weights.st_mtime_ns, versions)
    digest = hashlib.sha256(repr(found).encode())
    for inputs in load.calibration():
        for array in inputs.values():
            digest.update(repr(array.shape).encode() + array.tobytes())
    path = cache_directory() / f"exported-{digest.hexdigest()[:16]}-{kind}"
    path = path.with_suffix(".xml" if kind.startswith("openvino") else ".onnx")
    if not path.exists():
        sources = dict.fromkeys(("onnx-fused", "onnx-int8", "openvino-int8"), "onnx")
        source = str(model_file(load, sources[kind])) if kind in sources else ""
        unfinished = path.with_stem(f"{path.stem}-unfinished")
        run_apart(makers[kind], load, source, str(unfinished))
        if path.suffix == ".xml":
            unfinished.with_suffix(".bin").rename(path.with_suffix(".bin"))
        unfinished.rename(path)
    return path


def trace(module: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Mapping[int, str]], path: str) -> None:
    """Write a module of PyTorch as an ONNX model for any number of sequences of any length.

    Args:
        module: called with the tensors in their order.
        inputs: tensors [batch, tokens] by the names of the inputs.
        outputs: names of the outputs' free axes by the names of the outputs.
        path: the file.
    """
    import torch

    with torch.inference_mode():
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            dynamo=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**{name: {0: "batch", 1: "tokens"} for name in inputs}, **outputs},
            opset_version=17,
        )


def _export(load: Exportable, source: str, path: str) -> None:
    del source
    load.export(path)


def _fuse(load: Exportable, source: str, path: str) -> None:
    """Fuse attention, activations and normalisation, as ONNX Runtime's documentation advises for BERT."""
    from onnxruntime.transformers import optimizer

    about = json.loads((load.model / "config.json").read_text())
    heads, hidden = about["num_attention_heads"], about["hidden_size"]
    model = optimizer.optimize_model(source, model_type="bert", num_heads=heads, hidden_size=hidden)
    fused = model.get_fused_operator_statistics()
    if fused["Attention"] != about["num_hidden_layers"]:
        raise RuntimeError(f"ONNX Runtime's optimiser fused {fused}, expected Attention in each of the layers")
    model.save_model_to_file(path)


def _quantize_dynamically(load: Exportable, source: str, path: str) -> None:
    """Weights in int8 per channel, activations as each call finds them.

    The fused model would be slower in int8, and weights per tensor less exact (least cosine 0.89) and no faster.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del load
    quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True)


def _quantize(load: Exportable, source: str, path: str) -> None:
    quantize(load.calibration(), source, path)


def quantize(calibration: Sequence[Mapping[str, np.ndarray]], source: str, path: str) -> None:
    """Write post-training int8 (NNCF, transformer preset) of the model in `source` to `path`.

    Args:
        calibration: inputs that the ranges of activations are taken from.
        source: an ONNX or OpenVINO model.
        path: the OpenVINO model.
    """
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(list(calibration)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)
