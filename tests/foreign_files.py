"""Files of other programs, made as they write them, for tests that read them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import safetensors.numpy

GOLDEN = Path(__file__).parent / "golden"
FOREIGN = GOLDEN / "foreign"
BERT: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
    "inner_dim": 24,
    "max_sequence_length": 8,
    "type_vocab_size": 2,
    "inner_activation": "gelu_tanh",
    "attention_layers": (0, 1),
    "moe_layers": (),
}
"""The arguments of the BERTs in `FOREIGN`."""


def write_tf_model(folder: Path, source: Path, *, model: str = "tf_bert_for_pre_training") -> Path:
    """Write the weights of the PyTorch model in `source` as Hugging Face's TensorFlow classes do, ``tf_model.h5``.

    Keras keeps each layer's weights in a group of its name, below the names of their scopes: `model`, the layer again,
    its parts. Numbers of blocks are ``layer_._0``; matrices are [inputs, outputs]; tables of positions and types are
    called ``embeddings``, the table of words ``weight``.
    """
    folder.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", folder)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    with h5py.File(folder / "tf_model.h5", "w") as file:
        file.attrs["backend"] = "tensorflow"
        for name, tensor in _keras_names(tensors).items():
            layer = name.split("/")[0]
            group = {"cls": "mlm___cls"}.get(layer, layer)
            file[f"{group}/{model}/{name.replace('cls/', f'{group}/', 1)}:0"] = tensor
    return folder


def _keras_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    for name, tensor in tensors.items():
        path, leaf = name.rsplit(".", 1)
        if leaf in ("position_ids", "token_type_ids"):
            continue
        if "LayerNorm" in path or "layer_norm" in path:
            leaf = {"weight": "gamma", "bias": "beta"}[leaf]
        elif path.endswith(("position_embeddings", "token_type_embeddings")):
            leaf = "embeddings"
        elif leaf == "weight" and not path.endswith("word_embeddings"):
            leaf, tensor = "kernel", tensor.T
        path = re.sub(r"\.layer\.(\d+)\.", r".layer_._\1.", path).replace("layer_._", "LAYER")
        renamed[f"{path.replace('.', '/').replace('LAYER', 'layer_._')}/{leaf}"] = tensor
    return renamed
