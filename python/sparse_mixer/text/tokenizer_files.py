"""Tokenizers in model folders: ``tokenizer.json`` or ``vocab.txt``.

What a ``tokenizer.json`` says of truncation and padding is not heeded: it is what its author happened to have set last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.extras import require
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._native import CheckpointError

_MAX_BYTES = 1 << 28


def load_tokenizer(path: PathLike) -> Any:
    """The tokenizer in a file or folder.

    Args:
        path: ``tokenizer.json``, ``vocab.txt`` (BERT's word pieces, one per line), or a folder with one of them.

    Returns:
        A `tokenizers.Tokenizer` that neither pads nor truncates.

    Raises:
        ImportError: `tokenizers` is not installed.
        CheckpointError: The file is damaged, or there is none in the folder.
        OSError: It cannot be read.
    """
    tokenizers = require("tokenizers", "text")
    file = file_name(path, "tokenizer")
    if os.path.isdir(file):
        folder = file
        found = [name for name in ("tokenizer.json", "vocab.txt") if os.path.isfile(os.path.join(folder, name))]
        if not found:
            raise CheckpointError(
                f"{folder}: there is no tokenizer.json and no vocab.txt; give tokenizer=, a tokenizers.Tokenizer or "
                "the path of such a file"
            )
        file = os.path.join(folder, found[0])
    if file.endswith(".txt"):
        return _word_pieces(tokenizers, file)
    with open(file, "rb") as stream:
        content = stream.read(_MAX_BYTES)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the package has no class of its own for it
        raise CheckpointError(f"{file}: not a usable tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_json(path: str) -> dict[str, Any]:
    """The mapping in the JSON file at `path`; empty if there is no such file.

    Raises:
        CheckpointError: It is something else.
        OSError: It cannot be read.
    """
    if not os.path.isfile(path):
        return {}
    with open(path, "rb") as stream:
        content = stream.read(_MAX_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a mapping")
    return value


def _word_pieces(tokenizers: Any, file: str) -> Any:
    """BERT's tokenizer from its vocabulary, and the settings beside it."""
    with open(file, encoding="utf-8") as stream:
        try:
            pieces = [line.rstrip("\r\n") for line in stream]
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file}: not a vocabulary: {error}") from None
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
    if missing:
        raise CheckpointError(f"{file}: not a vocabulary of BERT: there is no {missing[0]}")
    settings: Mapping[str, Any] = read_json(os.path.join(os.path.dirname(file), "tokenizer_config.json"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocabulary])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer
