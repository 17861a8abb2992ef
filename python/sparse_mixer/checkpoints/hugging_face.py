"""Configurations of Hugging Face's BERT and FNet models in terms of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.arguments import as_count, as_float
from sparse_mixer._native import CheckpointError

_MAX_CONFIG_BYTES = 1 << 20
# The encoder's layer norms have this epsilon; so has the reference.
_EPSILON = 1e-12
# What else each kind of model must have: variants that this encoder does not compute are told by these keys.
_VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {"position_embedding_type": "absolute", "is_decoder": False},
    "fnet": {},
}
# FNet's encoder is that of the paper's code without attention: projected embeddings, dropout after it, and sequences of
# any length up to the longest. One head fits every width; none attends.
_FOURIER: dict[str, Any] = {
    "semantics": "paper",
    "attention_layers": (),
    "num_attention_heads": 1,
    "mixing_mechanism": "fourier",
}
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


def read_hugging_face(path: str) -> dict[str, Any] | None:
    """The constructor's arguments for the BERT or FNet model at `path`: no experts; attention or Fourier everywhere.

    None if there is no model of the `transformers` package: no ``config.json``, or one without ``model_type`` beside a
    file.

    Raises:
        CheckpointError: Another model, a folder whose ``config.json`` is not a model's, a variant that this encoder
            does not compute, or a damaged configuration.
    """
    file = config_path(path)
    try:
        config = _read(file)
    except (OSError, CheckpointError):
        if not os.path.isfile(os.path.join(path, os.path.basename(file))):
            return None
        # The folder was given as a model, not a file that happens to be in it.
        raise
    if "model_type" not in config:
        if not os.path.isdir(path):
            return None
        raise CheckpointError(
            f"{file}: there is no 'model_type', which tells a BERT or FNet of Hugging Face; if these are the arguments "
            "of SparseMixer, give them as config=json.load(open(...))"
        )
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in _VARIANTS:
        raise CheckpointError(f"{file}: model_type {kind!r} is not read, only {', '.join(map(repr, _VARIANTS))}")
    for key, value in (_VARIANTS[kind] | {"layer_norm_eps": _EPSILON}).items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{file}: {key}={config[key]!r} is not supported, only {value!r}")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(f"{file}: hidden_act {activation!r} is not supported, only {sorted(_ACTIVATIONS)}")
    try:
        num_layers = _count(config, "num_hidden_layers")
        return {
            "vocab_size": _count(config, "vocab_size"),
            "hidden_size": _count(config, "hidden_size"),
            "num_layers": num_layers,
            "moe_layers": (),
            **(_attention(config, num_layers) if kind == "bert" else _FOURIER),
            "max_sequence_length": _count(config, "max_position_embeddings"),
            "type_vocab_size": _count(config, "type_vocab_size"),
            "inner_dim": _count(config, "intermediate_size"),
            "inner_activation": _ACTIVATIONS[activation],
            "output_dropout": as_float("hidden_dropout_prob", config.get("hidden_dropout_prob", 0.1)),
        }
    except (OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def _attention(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    dropout = "attention_probs_dropout_prob"
    return {
        # Not a tuple: how many layers the file can have is looked at later.
        "attention_layers": range(num_layers),
        "num_attention_heads": _count(config, "num_attention_heads"),
        "attention_dropout": as_float(dropout, config.get(dropout, 0.1)),
    }


def _count(config: Mapping[str, Any], key: str) -> int:
    if key not in config:
        raise ValueError(f"'{key}' is missing")
    return as_count(key, config[key])


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
