"""SentencePiece models as tokenizers of the `tokenizers` package, with fairseq's ids: XLM-RoBERTa and CamemBERT.

Source: ``sentencepiece_model.proto`` of google/sentencepiece for the file; ``convert_slow_tokenizer.py`` of
`transformers` for the ids. Only the few fields that count are read, so no further package is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from sparse_mixer._native import CheckpointError

NAMES = ("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model")
"""What such files are called in folders."""

_MAX_BYTES = 1 << 28
_UNIGRAM, _USER_DEFINED = 1, 4
_SPACE = "\u2581"
# By `model_type`: the pieces that fairseq puts in front, and how many of the file's own it leaves out. The ids of start
# and end of a text are those of "<s>" and "</s>".
_FAIRSEQ: dict[str, tuple[list[tuple[str, float]], int]] = {
    "xlm-roberta": ([("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], 3),
    "camembert": (
        [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)],
        1,
    ),
}
_UNKNOWN_ID = 3
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


class _Model(NamedTuple):
    """What counts in such a file."""

    pieces: list[tuple[str, float]]
    user_defined: list[str]
    kind: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def sentence_piece(tokenizers: Any, file: str, kind: Any) -> Any:
    """The tokenizer of the SentencePiece model in `file`.

    Args:
        tokenizers: The package.
        file: The file.
        kind: ``model_type`` of its encoder, on which ids depend.

    Raises:
        CheckpointError: A damaged file, or one of another kind of model or encoder.
        OSError: It cannot be read.
    """
    if not isinstance(kind, str) or kind not in _FAIRSEQ:
        raise CheckpointError(
            f"{file}: which ids its pieces have depends on the encoder; those of {', '.join(_FAIRSEQ)} are known, and "
            f"the config.json beside it says {kind!r}: give tokenizer=, a tokenizers.Tokenizer or a tokenizer.json"
        )
    with open(file, "rb") as stream:
        content = stream.read(_MAX_BYTES)
    try:
        model = _read(content)
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{file}: not a SentencePiece model: {error}") from None
    if model.kind != _UNIGRAM:
        raise CheckpointError(f"{file}: a model of type {model.kind} is not read, only unigram models, type {_UNIGRAM}")
    first, left_out = _FAIRSEQ[kind]
    try:
        return _tokenizer(tokenizers, model, [*first, *model.pieces[left_out:], ("<mask>", 0.0)])
    except Exception as error:  # the package has no class of its own for it
        raise CheckpointError(f"{file}: not a usable SentencePiece model: {error}") from None


def _tokenizer(tokenizers: Any, model: _Model, vocabulary: list[tuple[str, float]]) -> Any:
    parts = tokenizers.normalizers
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.Unigram(vocabulary, unk_id=_UNKNOWN_ID, byte_fallback=model.byte_fallback)
    )
    steps = [parts.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        # Spaces only: other white space stays.
        steps += [parts.Replace(tokenizers.Regex(r"\A +| +\z"), ""), parts.Replace(tokenizers.Regex(" {2,}"), " ")]
    steps.append(parts.Replace(" ", _SPACE))
    tokenizer.normalizer = parts.Sequence(steps)
    # Words apart are faster, and the same where no piece spans several.
    apart = not any(_SPACE in piece[1:] for piece, _ in model.pieces)
    scheme = "always" if model.add_dummy_prefix else "never"
    metaspace = tokenizers.pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=apart)
    tokenizer.pre_tokenizer = metaspace
    tokenizer.decoder = tokenizers.decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    known = {piece: number for number, (piece, _) in reversed(list(enumerate(vocabulary)))}
    tokenizer.add_special_tokens([token for token in _SPECIAL if token in known])
    tokenizer.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in model.user_defined])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, known[token]) for token in ("<s>", "</s>")],
    )
    return tokenizer


def _read(content: bytes) -> _Model:
    pieces, user_defined = [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(content):
        if field == 1:
            about = dict(_fields(value))
            piece = _bytes(about.get(1, b"")).decode()
            pieces.append((piece, struct.unpack("<f", _bytes(about.get(2, bytes(4))))[0]))
            if about.get(3) == _USER_DEFINED:
                user_defined.append(piece)
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    return _Model(
        pieces=pieces,
        user_defined=user_defined,
        kind=trainer.get(3, _UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is a number")
    return value


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: integers, or the bytes of everything else.

    Raises:
        ValueError: It is damaged.
    """
    if not isinstance(message, bytes):
        raise ValueError("a field is no message")
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        for byte in message[at : at + 10]:
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError("a number does not end")

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of unknown kind {kind}")
        length = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        if length > len(message) - at:
            raise ValueError("it is cut short")
        yield key >> 3, message[at : at + length]
        at += length
