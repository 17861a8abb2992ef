"""Configurations of google-research/bert, ``bert_config.json``, in terms of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.hugging_face import bert_arguments, config_path, read_config

_CONFIG = "bert_config.json"
# Its "gelu" is the tanh form; see `gelu` in modeling.py there.
_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "tanh": "tanh", "linear": "linear", "": "linear"}
# The layers of Model Garden's first encoder have numbers for names; it always has a pooler.
_NUMBERED = "layer_with_weights-"


def read_google_bert(path: str, tensors: Sequence[str]) -> dict[str, Any] | None:
    """The constructor's arguments for the checkpoint at `path`, by the ``bert_config.json`` beside it, if there is one.

    Args:
        path: The folder, or the prefix of the checkpoint in it, or one of its files.
        tensors: The names of its tensors.

    Raises:
        CheckpointError: A damaged configuration.
        OSError: It cannot be read.
    """
    file = os.path.join(os.path.dirname(config_path(path)), _CONFIG)
    if not os.path.isfile(file):
        return None
    config = read_config(file)
    activation = config.get("hidden_act") or ""
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(f"{file}: hidden_act {activation!r} is not supported, only {sorted(_ACTIVATIONS)}")
    has_pooler = any("pooler" in name or _NUMBERED in name for name in tensors)
    try:
        return bert_arguments("bert", config, _ACTIVATIONS[activation]) | {"with_pooler": has_pooler}
    except (OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None
