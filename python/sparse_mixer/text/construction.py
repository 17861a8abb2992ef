"""What a `TextEncoder` is built of: an encoder, a tokenizer, and what a folder says of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._native import CheckpointError
from sparse_mixer.networks import SparseMixer
from sparse_mixer.text.dense import Dense, read_dense
from sparse_mixer.text.sentence_folders import MODES, SentenceFolder, read_folder
from sparse_mixer.text.tokenizer_files import load_tokenizer, read_json
from sparse_mixer.text.tokenizing import check_tokenizer


class Parts(NamedTuple):
    """An encoder, its tokenizer, what its folder says, and the longest text, special tokens included."""

    encoder: SparseMixer
    tokenizer: Any
    about: SentenceFolder
    longest: int


def read_parts(folder_or_encoder: PathLike | SparseMixer, tokenizer: Any, dtype: Any, num_threads: int | None) -> Parts:
    """Load what is given as a path; errors and arguments are those of `TextEncoder`."""
    about = SentenceFolder("")
    limits: list[int] = []
    if isinstance(folder_or_encoder, SparseMixer):
        encoder = folder_or_encoder if dtype is None else folder_or_encoder.astype(dtype)
        if tokenizer is None:
            raise TypeError("tokenizer: missing; an encoder has none of its own")
    else:
        folder = file_name(folder_or_encoder, "folder_or_encoder")
        about = read_folder(folder) if os.path.isdir(folder) else SentenceFolder(os.path.dirname(folder))
        source = about.encoder if os.path.isdir(folder) else folder
        options = {} if dtype is None else {"dtype": dtype}
        encoder = SparseMixer.load(source, num_threads=num_threads, **options)
        limits += _limits(about)
        tokenizer = about.encoder if tokenizer is None else tokenizer
    if num_threads is not None:
        encoder.num_threads = num_threads
    if isinstance(tokenizer, str | bytes | os.PathLike):
        tokenizer = load_tokenizer(tokenizer)
    check_tokenizer(tokenizer)
    if encoder.arguments.embedding_layer is not None:
        raise ValueError("folder_or_encoder: got an encoder with an own embedding_layer, expected one that takes ids")
    return Parts(encoder, tokenizer, about, min([encoder.arguments.max_sequence_length, *limits]))


def read_layers(about: SentenceFolder, width: int) -> list[Dense | None]:
    """What is done with pooled vectors of `width` numbers; None stands for dividing them by their lengths.

    Raises:
        CheckpointError: A layer that is damaged, not computed, or of another width.
    """
    layers: list[Dense | None] = []
    for folder in about.layers:
        layer = None if folder is None else read_dense(folder)
        if layer is not None:
            if layer.in_features != width:
                raise CheckpointError(
                    f"{folder}: in_features: got {layer.in_features}, but vectors have {width} numbers"
                )
            width = layer.out_features
        layers.append(layer)
    return layers


def as_modes(pooling: str | Sequence[str]) -> tuple[str, ...]:
    """One or several modes of pooling.

    Raises:
        ValueError: An unknown one.
    """
    modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"pooling: got {mode!r}, expected one of {', '.join(map(repr, MODES))}")
    return modes


def _limits(about: SentenceFolder) -> list[int]:
    """What a folder says of the length of texts; what the tokenizer's settings say counts where nothing else does."""
    if about.max_seq_length is not None:
        return [about.max_seq_length]
    longest = read_json(os.path.join(about.encoder, "tokenizer_config.json")).get("model_max_length")
    # Some files have a number beyond all integers that stands for none.
    return [longest] if isinstance(longest, int) and 0 < longest < 1 << 31 else []
