"""Configurations of KerasHub's presets, ``config.json`` beside ``model.weights.h5``, in terms of ours."""

from __future__ import annotations

from typing import Any

from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.hugging_face import bert_arguments, config_path, read_config

# The package was called KerasNLP before.
_PACKAGES = ("keras_hub>", "keras_nlp>")
_CLASS = "BertBackbone"
# Hugging Face's name of each key.
_KEYS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "dropout",
}


def read_keras_hub(path: str) -> dict[str, Any] | None:
    """The constructor's arguments for the preset at `path`, the folder or the weight file in it; None for other files.

    Raises:
        CheckpointError: Another model than a BERT, or a damaged configuration.
    """
    file = config_path(path)
    try:
        about = read_config(file)
    except (OSError, CheckpointError):
        return None
    kind, config = about.get("registered_name"), about.get("config")
    if not isinstance(kind, str) or not kind.startswith(_PACKAGES):
        return None
    if not kind.endswith(f">{_CLASS}"):
        raise CheckpointError(f"{file}: the model {kind!r} is not read; only 'keras_hub>{_CLASS}'")
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: 'config': expected a mapping, got {type(config).__name__}")
    try:
        # Its activation is fixed.
        return bert_arguments("bert", {ours: config[key] for ours, key in _KEYS.items() if key in config}, "gelu_tanh")
    except (OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None
