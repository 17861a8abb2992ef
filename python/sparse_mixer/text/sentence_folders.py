"""Folders of the `sentence-transformers` package: which encoder, how it is pooled, what is done with the vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparse_mixer._native import CheckpointError
from sparse_mixer.text.tokenizer_files import read_json

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "pooled")
"""Modes of pooling; ``"pooled"`` is the encoder's own pooler."""

# The keys of older files, in the order in which that package puts the parts side by side.
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceFolder:
    """What such a folder says; defaults are those of a folder that says nothing.

    Attributes:
        encoder: The folder of the encoder and the tokenizer.
        pooling: Modes of pooling; None if it does not say.
        include_prompt: Whether the tokens of a prompt are pooled.
        layers: What is done with pooled vectors, in this order: the folder of a `Dense`, or None to divide vectors by
            their lengths.
        max_seq_length: Tokens per text, special tokens included; None if it does not say.
        lower_case: Whether texts are lower-cased first.
        prompts: Texts to put in front, by name.
        default_prompt_name: The prompt where none is named.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        truncate_dim: How many numbers of a vector are kept; None for all.
    """

    encoder: str
    pooling: tuple[str, ...] | None = None
    include_prompt: bool = True
    layers: tuple[str | None, ...] = ()
    max_seq_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str | None = None
    truncate_dim: int | None = None


def read_folder(folder: str) -> SentenceFolder:
    """What the folder says, which may be one of the `transformers` package without more.

    Raises:
        CheckpointError: Damaged files, or parts that are not computed, by name.
        OSError: A file cannot be read.
    """
    parts = _modules(folder)
    about: dict[str, Any] = {"encoder": folder, "layers": ()}
    for number, (kind, place) in enumerate(parts):
        name, where = kind.rpartition(".")[2], os.path.join(folder, place) if place else folder
        if name == "Transformer" and number == 0:
            about["encoder"] = where
            settings = read_json(os.path.join(where, "sentence_bert_config.json"))
            about["max_seq_length"] = _integer(where, settings, "max_seq_length")
            about["lower_case"] = bool(settings.get("do_lower_case", False))
        elif name == "Pooling" and number == 1:
            config = read_json(os.path.join(where, "config.json"))
            about["pooling"] = _pooling(where, config)
            about["include_prompt"] = bool(config.get("include_prompt", True))
        elif name == "Normalize" and number > 1:
            about["layers"] += (None,)
        elif name == "Dense" and number > 1:
            about["layers"] += (where,)
        else:
            raise CheckpointError(
                f"{folder}: modules.json has a part that is not computed, {kind!r} in place {number}; read are a "
                "Transformer, a Pooling, then Dense and Normalize"
            )
    if not parts:
        settings = read_json(os.path.join(folder, "sentence_bert_config.json"))
        about["max_seq_length"] = _integer(folder, settings, "max_seq_length")
    config = read_json(os.path.join(folder, "config_sentence_transformers.json"))
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{folder}: prompts: expected texts by name, got {prompts!r}")
    about["prompts"] = prompts
    about["default_prompt_name"] = config.get("default_prompt_name")
    about["similarity"] = config.get("similarity_fn_name")
    about["truncate_dim"] = _integer(folder, config, "truncate_dim")
    return SentenceFolder(**about)


def _modules(folder: str) -> list[tuple[str, str]]:
    """Class and place of each part; none without ``modules.json``."""
    file = os.path.join(folder, "modules.json")
    if not os.path.isfile(file):
        return []
    try:
        with open(file, "rb") as stream:
            listed = json.load(stream)
        entries = sorted(listed, key=lambda entry: int(entry["idx"]))
        return [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a list of parts: {error!r}") from None


def _integer(folder: str, config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CheckpointError(f"{folder}: {key}: expected an integer of at least 1, got {value!r}")
    return value


def _pooling(folder: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if mode is not None:
        modes = tuple(mode) if isinstance(mode, list) else (mode,)
    else:
        modes = tuple(ours for key, ours in _OLD_KEYS.items() if config.get(key))
    unknown = [name for name in modes if name not in MODES]
    if unknown or not modes:
        raise CheckpointError(f"{folder}: pooling mode {unknown or 'none'}, expected one of {list(MODES)}")
    return modes
