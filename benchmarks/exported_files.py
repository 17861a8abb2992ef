"""The weights of a folder as ONNX and OpenVINO models, made at the first request and kept."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

from benchmarks.peer_openvino import cache_directory, run_apart
from benchmarks.sentence_tasks import SentenceLoad

KINDS = ("onnx", "onnx-fused", "onnx-int8", "openvino-int8")
"""The exported model; that one fused by ONNX Runtime's optimiser, with dynamic int8, and with NNCF's int8."""

_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "openvino")


def model_file(load: SentenceLoad, kind: str) -> pathlib.Path:
    """Return a model with the inputs `input_ids` and `attention_mask` and the vectors as its output.

    Args:
        load: the folder, and texts for calibration.
        kind: one of `KINDS`.
    """
    makers = {"onnx": _export, "onnx-fused": _fuse, "onnx-int8": _quantize_dynamically, "openvino-int8": _quantize}
    weights = (load.model / "model.safetensors").stat()
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    found = (str(load.model.resolve()), weights.st_size, weights.st_mtime_ns, versions, load.texts["calibration"])
    key = hashlib.sha256(repr(found).encode()).hexdigest()[:16]
    path = cache_directory() / f"sentences-{key}-{kind}.{'xml' if kind.startswith('openvino') else 'onnx'}"
    if not path.exists():
        sources = dict.fromkeys(("onnx-fused", "onnx-int8", "openvino-int8"), "onnx")
        source = str(model_file(load, sources[kind])) if kind in sources else ""
        unfinished = path.with_stem(f"{path.stem}-unfinished")
        run_apart(makers[kind], load, source, str(unfinished))
        if path.suffix == ".xml":
            unfinished.with_suffix(".bin").rename(path.with_suffix(".bin"))
        unfinished.rename(path)
    return path


def _export(load: SentenceLoad, source: str, path: str) -> None:
    """Trace transformers' model with mean pooling and division by the length behind it."""
    import torch
    from transformers import AutoModel

    del source
    encoder = AutoModel.from_pretrained(load.model, attn_implementation="eager", local_files_only=True).eval()

    class Sentences(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            # Eager attention and the model's own mask are what ONNX Runtime's optimiser knows.
            hidden = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=torch.zeros_like(input_ids)
            ).last_hidden_state
            mask = attention_mask.to(torch.float32)
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            return torch.nn.functional.normalize(pooled, dim=1)

    names = ["input_ids", "attention_mask"]
    axes = {0: "batch", 1: "tokens"}
    ids = torch.full((2, 9), 1000)
    with torch.inference_mode():
        torch.onnx.export(
            Sentences(),
            (ids, torch.ones_like(ids)),
            path,
            dynamo=False,
            input_names=names,
            output_names=["sentence_embedding"],
            dynamic_axes={**dict.fromkeys(names, axes), "sentence_embedding": {0: "batch"}},
            opset_version=17,
        )


def _fuse(load: SentenceLoad, source: str, path: str) -> None:
    """Fuse attention, activations and normalisation, as ONNX Runtime's documentation advises for BERT."""
    from onnxruntime.transformers import optimizer

    about = json.loads((load.model / "config.json").read_text())
    heads, hidden = about["num_attention_heads"], about["hidden_size"]
    model = optimizer.optimize_model(source, model_type="bert", num_heads=heads, hidden_size=hidden)
    fused = model.get_fused_operator_statistics()
    if fused["Attention"] != about["num_hidden_layers"]:
        raise RuntimeError(f"ONNX Runtime's optimiser fused {fused}, expected Attention in each of the layers")
    model.save_model_to_file(path)


def _quantize_dynamically(load: SentenceLoad, source: str, path: str) -> None:
    """Weights in int8 per channel, activations as each call finds them.

    The fused model would be slower in int8, and weights per tensor less exact (least cosine 0.89) and no faster.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del load
    quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True)


def _quantize(load: SentenceLoad, source: str, path: str) -> None:
    """Post-training int8 (NNCF, transformer preset), calibrated on texts that are not measured."""
    import nncf
    import numpy as np
    import openvino

    from benchmarks.sentence_tasks import read_tokenizer

    tokenizer = read_tokenizer(load.model, load.longest())
    texts = load.texts["calibration"]

    def feed(text: str) -> dict[str, np.ndarray]:
        ids = np.asarray([tokenizer.encode(text).ids], np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(list(texts), feed),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(texts),
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)
