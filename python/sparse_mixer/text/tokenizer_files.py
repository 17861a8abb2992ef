"""Tokenizers in model folders: ``tokenizer.json``, ``vocab.txt``, RoBERTa's two files, or a SentencePiece model.

What a ``tokenizer.json`` says of truncation and padding is not heeded: it is what its author happened to have set last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.extras import require
from sparse_mixer._core.json_text import mapping_of
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._native import CheckpointError
from sparse_mixer.text import sentencepiece_files

_MAX_BYTES = 1 << 28
# Which pieces join, and the numbers of pieces.
_BYTE_PAIRS = ("merges.txt", "vocab.json")


def load_tokenizer(path: PathLike) -> Any:
    """The tokenizer in a file or folder.

    Args:
        path: ``tokenizer.json``, ``vocab.txt`` (BERT's word pieces, one per line), ``merges.txt`` (RoBERTa's pairs of
            bytes, beside ``vocab.json``), ``sentencepiece.bpe.model`` (beside the ``config.json`` of an XLM-RoBERTa or
            CamemBERT), or a folder with one of them.

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
        names = ("tokenizer.json", "vocab.txt", *_BYTE_PAIRS[:1], *sentencepiece_files.NAMES)
        found = [name for name in names if os.path.isfile(os.path.join(folder, name))]
        if not found:
            raise CheckpointError(
                f"{folder}: there is no tokenizer.json, vocab.txt, merges.txt or sentencepiece.bpe.model; give "
                "tokenizer=, a tokenizers.Tokenizer or the path of such a file"
            )
        file = os.path.join(folder, found[0])
    if os.path.basename(file) == _BYTE_PAIRS[0]:
        return _byte_pairs(tokenizers, os.path.dirname(file))
    if file.endswith(".txt"):
        return _word_pieces(tokenizers, file)
    if file.endswith(".model"):
        config = read_json(os.path.join(os.path.dirname(file), "config.json"))
        return sentencepiece_files.sentence_piece(tokenizers, file, config.get("model_type"))
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
        return mapping_of(stream.read(_MAX_BYTES), path, CheckpointError)


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


def _byte_pairs(tokenizers: Any, folder: str) -> Any:
    """RoBERTa's tokenizer from its two files."""
    merges, pieces = (os.path.join(folder, name) for name in _BYTE_PAIRS)
    vocabulary = read_json(pieces)
    missing = [token for token in ("<s>", "</s>", "<pad>", "<unk>") if token not in vocabulary]
    if missing:
        raise CheckpointError(f"{pieces}: not a vocabulary of RoBERTa: there is no {missing[0]}")
    parts = tokenizers.pre_tokenizers, tokenizers.decoders, tokenizers.processors
    try:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(pieces, merges))
    except Exception as error:  # the package has no class of its own for it
        raise CheckpointError(f"{merges}: not usable with {_BYTE_PAIRS[1]}: {error}") from None
    tokenizer.pre_tokenizer = parts[0].ByteLevel(add_prefix_space=False)
    tokenizer.decoder = parts[1].ByteLevel()
    end, start = (("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]))
    tokenizer.post_processor = parts[2].RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=False)
    tokenizer.add_special_tokens([token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in vocabulary])
    if "<mask>" in vocabulary:
        tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    return tokenizer
