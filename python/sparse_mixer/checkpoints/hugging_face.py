"""Configurations of the models of the `transformers` package in terms of ours.

BERT, the models that differ from it in names and sizes alone (RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA, DistilBERT),
MPNet and FNet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparse_mixer._core.checks import as_count, as_float
from sparse_mixer._core.json_text import mapping_of
from sparse_mixer._native import CheckpointError

_MAX_CONFIG_BYTES = 1 << 20
EPSILON = 1e-12
"""Of layer norms, where a model does not say."""
_TYPE_TABLE = "type_embeddings/embeddings"
# In PyTorch's files and in TensorFlow's.
_POOLERS = ("pooler.dense.weight", "pooler/dense/kernel", "pooler/dense/kernel:0")
# What else each kind of model must have: variants that this encoder does not compute are told by these keys.
_ABSOLUTE = {"position_embedding_type": "absolute", "is_decoder": False}
_VARIANTS: dict[str, dict[str, Any]] = {
    "bert": _ABSOLUTE,
    "roberta": _ABSOLUTE,
    "camembert": _ABSOLUTE,
    "xlm-roberta": _ABSOLUTE,
    "electra": _ABSOLUTE,
    "mpnet": {},
    "distilbert": {},
    "fnet": {},
}
# Their positions are counted from behind the padding's row of the table.
_COUNT_FROM_PADDING = ("roberta", "camembert", "xlm-roberta", "mpnet")
WITHOUT_TYPES = ("distilbert", "mpnet")
"""Models that have no token types."""
# Why models that one might take for a BERT are not read.
_UNSUPPORTED = {
    "albert": "its layers share their weights",
    "deberta": "its attention is relative to positions",
    "deberta-v2": "its attention is relative to positions",
    "modernbert": "it has rotary positions and gated feed-forward layers",
    "nomic_bert": "it has rotary positions and gated feed-forward layers",
    "xlnet": "its attention is relative to positions",
    "longformer": "its attention is local",
    "t5": "its attention has relative position biases",
}
# FNet's encoder is that of the paper's code without attention: projected embeddings, dropout after it, and sequences of
# any length up to the longest. One head fits every width; none attends.
_FOURIER: dict[str, Any] = {
    "semantics": "paper",
    "attention_layers": (),
    "num_attention_heads": 1,
    "mixing_mechanism": "fourier",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
"""Our name of each activation."""
DISTILBERT = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
}
"""DistilBERT's names of what the others have."""


class Layout(NamedTuple):
    """How a file keeps weights, beyond their names."""

    first_position: int | None = None
    """The row of the table of positions that belongs to the first position; None: the table is as ours."""
    zeros: tuple[str, ...] = ()
    """Weights that the file does not have, and that are zeros."""


def config_path(path: str) -> str:
    """Where the configuration of the model at `path`, a folder or the weight file in it, would be."""
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), "config.json")


def read_layout(path: str) -> Layout:
    """How the weight file at `path` keeps weights, by the configuration beside it, if there is one."""
    try:
        config = read_config(config_path(path))
        kind = config.get("model_type")
        if kind in _COUNT_FROM_PADDING:
            return Layout(_first_position(config), (_TYPE_TABLE,) if kind in WITHOUT_TYPES else ())
    except (OSError, CheckpointError, TypeError, ValueError):
        # No folder of that package.
        return Layout()
    return Layout(zeros=(_TYPE_TABLE,)) if kind in WITHOUT_TYPES else Layout()


def read_hugging_face(path: str, tensors: Sequence[str]) -> dict[str, Any] | None:
    """The constructor's arguments for the model at `path`: no experts; attention or Fourier everywhere.

    None if there is no model of the `transformers` package: no ``config.json``, or one without ``model_type`` beside a
    file.

    Args:
        path: The folder, or the weight file in it.
        tensors: The names of its tensors.

    Raises:
        CheckpointError: Another model, a folder whose ``config.json`` is not a model's, a variant that this encoder
            does not compute, or a damaged configuration.
    """
    file = config_path(path)
    try:
        config = read_config(file)
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
        why = f": {_UNSUPPORTED[kind]}" if isinstance(kind, str) and kind in _UNSUPPORTED else ""
        raise CheckpointError(f"{file}: model_type {kind!r} is not read{why}; only {', '.join(map(repr, _VARIANTS))}")
    for key, value in _VARIANTS[kind].items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{file}: {key}={config[key]!r} is not supported, only {value!r}")
    if kind == "distilbert":
        config = {**config, **{ours: config[theirs] for ours, theirs in DISTILBERT.items() if theirs in config}}
    if kind in WITHOUT_TYPES:
        config = {"type_vocab_size": 1, **config}
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise CheckpointError(f"{file}: hidden_act {activation!r} is not supported, only {sorted(ACTIVATIONS)}")
    try:
        return bert_arguments(kind, config, ACTIVATIONS[activation]) | {
            "with_pooler": any(name.endswith(_POOLERS) for name in tensors)
        }
    except (OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def bert_arguments(kind: str, config: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """The constructor's arguments for a model of `kind`; `activation` is our name of its activation.

    Raises:
        OverflowError, TypeError, ValueError: The configuration cannot be.
    """
    num_layers, positions = _count(config, "num_hidden_layers"), _count(config, "max_position_embeddings")
    arguments = {
        "vocab_size": _count(config, "vocab_size"),
        "hidden_size": _count(config, "hidden_size"),
        "num_layers": num_layers,
        "moe_layers": (),
        **(_FOURIER if kind == "fnet" else _attention(config, num_layers)),
        "max_sequence_length": positions - (_first_position(config) if kind in _COUNT_FROM_PADDING else 0),
        "type_vocab_size": _count(config, "type_vocab_size"),
        "inner_dim": _count(config, "intermediate_size"),
        "inner_activation": activation,
        "output_dropout": as_float("hidden_dropout_prob", config.get("hidden_dropout_prob", 0.1)),
        "layer_norm_epsilon": as_float("layer_norm_eps", config.get("layer_norm_eps", EPSILON)),
    }
    if kind == "electra":
        arguments["embedding_width"] = _count(config, "embedding_size")
    if kind == "mpnet":
        buckets = "relative_attention_num_buckets"
        arguments[buckets] = as_count(buckets, config.get(buckets, 32))
    return arguments


def _attention(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    dropout = "attention_probs_dropout_prob"
    return {
        # Not a tuple: how many layers the file can have is looked at later.
        "attention_layers": range(num_layers),
        "num_attention_heads": _count(config, "num_attention_heads"),
        "attention_dropout": as_float(dropout, config.get(dropout, 0.1)),
        "shorter_sequences": True,
    }


def _first_position(config: Mapping[str, Any]) -> int:
    """The row of the first position in RoBERTa's tables, which is the one behind the padding's."""
    return as_count("pad_token_id", config.get("pad_token_id", 1)) + 1


def _count(config: Mapping[str, Any], key: str) -> int:
    if key not in config:
        raise ValueError(f"'{key}' is missing")
    return as_count(key, config[key])


def read_config(file: str) -> dict[str, Any]:
    """The mapping in the JSON file `file`.

    Raises:
        CheckpointError: It is something else.
        OSError: It cannot be read.
    """
    with open(file, "rb") as stream:
        return mapping_of(stream.read(_MAX_CONFIG_BYTES), file, CheckpointError)
