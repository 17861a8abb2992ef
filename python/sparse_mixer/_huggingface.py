"""Configurations of Hugging Face's BERT models in terms of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from sparse_mixer._native import CheckpointError

_MAX_CONFIG_BYTES = 1 << 20
# The encoder's layer norms have this epsilon; so has the reference.
_EPSILON = 1e-12
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


def config_path(path: str) -> str:
    """Where the configuration of the model at `path`, a folder or the weight file in it, would be."""
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), "config.json")


def is_hugging_face(path: str) -> bool:
    """Whether a folder (or the folder of a weight file) holds a model of the `transformers` package."""
    try:
        return "model_type" in _read(config_path(path))
    except (OSError, CheckpointError):
        return False


def read_hugging_face(path: str) -> dict[str, Any]:
    """The constructor's arguments for the BERT model at `path`: attention everywhere, no experts.

    Raises:
        CheckpointError: Another model, or a variant of BERT that this encoder does not compute.
    """
    file = config_path(path)
    config = _read(file)
    if config.get("model_type") != "bert":
        raise CheckpointError(f"{file}: model_type {config.get('model_type')!r} is not read, only 'bert'")
    expected = {"position_embedding_type": "absolute", "is_decoder": False, "layer_norm_eps": _EPSILON}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{file}: {key}={config[key]!r} is not supported, only {value!r}")
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{file}: hidden_act {activation!r} is not supported, only {sorted(_ACTIVATIONS)}")
    try:
        num_layers = int(config["num_hidden_layers"])
        return {
            "vocab_size": int(config["vocab_size"]),
            "hidden_size": int(config["hidden_size"]),
            "num_layers": num_layers,
            "moe_layers": (),
            "attention_layers": tuple(range(num_layers)),
            "num_attention_heads": int(config["num_attention_heads"]),
            "max_sequence_length": int(config["max_position_embeddings"]),
            "type_vocab_size": int(config["type_vocab_size"]),
            "inner_dim": int(config["intermediate_size"]),
            "inner_activation": _ACTIVATIONS[activation],
            "output_dropout": float(config.get("hidden_dropout_prob", 0.1)),
            "attention_dropout": float(config.get("attention_probs_dropout_prob", 0.1)),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: incomplete or damaged: {error!r}") from None


def _read(file: str) -> Mapping[str, Any]:
    with open(file, "rb") as stream:
        text = stream.read(_MAX_CONFIG_BYTES)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a mapping")
    return config
