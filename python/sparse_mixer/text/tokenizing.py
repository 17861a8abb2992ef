"""Tokenisers, and texts as the arrays that an encoder takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_list, as_positive, short
from sparse_mixer._core.extras import require

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of `train_tokenizer`; their ids are their places here."""

# The tokenizers package ends the process if it cannot have memory for so many as it is told.
_MOST_PIECES = 2**24

IntArray = npt.NDArray[np.int32]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192) -> Any:
    """Train a lower-casing WordPiece tokenizer in the manner of BERT.

    Args:
        texts: what to learn from.
        vocab_size: largest number of word pieces, special tokens included; a small corpus may yield fewer.

    Returns:
        A `tokenizers.Tokenizer` that wraps a text in ``[CLS] ... [SEP]`` and a pair in ``[CLS] ... [SEP] ... [SEP]``.
        Save it with ``.save("tokenizer.json")``; load one with ``tokenizers.Tokenizer.from_file``.

    Raises:
        ImportError: `tokenizers` is not installed.
        ValueError: `vocab_size` is below 1 or above 16,777,216.
    """
    if isinstance(texts, str | bytes | bytearray | Mapping) or not isinstance(texts, Iterable):
        as_list("texts", texts, "texts")  # says what is wrong with it
    tokenizers = require("tokenizers", "text")
    if as_positive("vocab_size", vocab_size) > _MOST_PIECES:
        raise ValueError(f"vocab_size: expected at most {_MOST_PIECES}, got {vocab_size}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.train_from_iterator(
        _strings(texts),
        tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        ),
    )
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def encode(
    tokenizer: Any,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    sequence_length: int,
    pad_token: str | None = None,
) -> dict[str, IntArray]:
    """Tokenise `texts` into the inputs of an encoder, each cut or padded to the one length that it takes.

    An encoder must see the length that it was built for: mixing layers and experts treat padding as tokens, so that
    padding to another length would change the results.

    The tokenizer is not changed, and its own settings hold but for the lengths: side and strategy of truncation; side,
    token and type of padding.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        texts: B texts, or pairs of texts.
        sequence_length: the encoder's `max_sequence_length`, S.
        pad_token: token whose id fills the rest; None for that of the tokenizer's padding, or ``"[PAD]"``.

    Returns:
        ``input_word_ids``, ``input_mask`` (1 for tokens, 0 for padding) and ``input_type_ids``, int32 [B, S].

    Raises:
        TypeError: A single text instead of a list, an entry that is no text, or another kind of tokenizer.
        ValueError: The tokenizer has no `pad_token`, its strategy cannot cut a text to the length, or the length is
            below that of the special tokens.
    """
    check_tokenizer(tokenizer)
    rows = as_list("texts", texts, "texts")
    for position, row in enumerate(rows):
        if not is_text_or_pair(row):
            kind = type(row).__name__
            raise TypeError(f"texts[{position}]: expected a text or a pair of texts, got {short(row)} ({kind})")
    length = as_positive("sequence_length", sequence_length)
    padding = tokenizer.padding or {}
    if pad_token is None:
        pad, token = padding.get("pad_id"), padding.get("pad_token", "[PAD]")
    else:
        pad, token = None, pad_token
    pad = tokenizer.token_to_id(token) if pad is None else pad
    if pad is None:
        raise ValueError(f"pad_token: the tokenizer does not know {token!r}")
    shape = (len(rows), length)
    inputs = {
        "input_word_ids": np.full(shape, pad, np.int32),
        "input_mask": np.zeros(shape, np.int32),
        "input_type_ids": np.full(shape, padding.get("pad_type_id", 0), np.int32),
    }
    left = padding.get("direction") == "left"
    for row, encoding in enumerate(_encoded(tokenizer, rows, length)):
        used = len(encoding.ids)
        place = slice(length - used, None) if left else slice(used)
        inputs["input_word_ids"][row, place] = encoding.ids
        inputs["input_mask"][row, place] = 1
        inputs["input_type_ids"][row, place] = encoding.type_ids
    return inputs


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer of the `tokenizers` package."""
    needed = ("model", "token_to_id", "encode_batch", "get_added_tokens_decoder")
    if all(hasattr(tokenizer, name) for name in needed):
        return
    hint = "; pass tokenizer.backend_tokenizer" if hasattr(tokenizer, "backend_tokenizer") else ""
    raise TypeError(f"tokenizer: expected a tokenizers.Tokenizer, got {type(tokenizer).__name__}{hint}")


def is_text_or_pair(row: Any) -> bool:
    """Whether `row` is a text, or two of them in a tuple or list."""
    if isinstance(row, tuple | list):
        return len(row) == 2 and all(isinstance(text, str) for text in row)
    return isinstance(row, str)


def _strings(texts: Iterable[str]) -> Iterator[str]:
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}]: expected a string, got {short(text)} ({type(text).__name__})")
        yield text


def _encoded(tokenizer: Any, rows: list[Any], length: int) -> list[Any]:
    """The encodings, cut to `length` as the tokenizer's own settings say."""
    for pair in {isinstance(row, tuple | list) for row in rows}:
        special = tokenizer.num_special_tokens_to_add(pair)
        if length < special:
            what = "pair" if pair else "text"
            message = f"got {length}, which does not hold the {special} special tokens of a {what}"
            raise ValueError(f"sequence_length: {message}")
    own = tokenizer.truncation or {}
    strategy = own.get("strategy", "longest_first")
    cutting = with_same_parts(tokenizer)
    cutting.enable_truncation(length, strategy=strategy, direction=own.get("direction", "right"))
    try:
        encodings: list[Any] = cutting.encode_batch(rows)
    except Exception as error:  # the package has no class of its own for it
        if "truncat" not in str(error).lower():
            raise
        message = f"cannot be cut to {length} tokens by the strategy {strategy!r} of the tokenizer"
        raise ValueError(f"texts: {message}: {error}") from None
    for position, encoding in enumerate(encodings):
        # Without a second text there is nothing to cut for "only_second".
        if len(encoding.ids) > length:
            message = f"cannot be cut to {length} tokens by the strategy {strategy!r} of the tokenizer"
            raise ValueError(f"texts[{position}]: {message}")
    return encodings


def with_same_parts(tokenizer: Any) -> Any:
    """A tokenizer of the same parts, which are shared and not copied, with settings of its own.

    Writing a tokenizer out and reading it again would take longer than a batch of texts.
    """
    twin = type(tokenizer)(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if getattr(tokenizer, part) is not None:
            setattr(twin, part, getattr(tokenizer, part))
    added = tokenizer.get_added_tokens_decoder()
    twin.add_tokens([added[number] for number in sorted(added)])
    twin.encode_special_tokens = tokenizer.encode_special_tokens
    if {number: token.content for number, token in twin.get_added_tokens_decoder().items()} == {
        number: token.content for number, token in added.items()
    }:
        return twin
    # Added tokens whose numbers do not follow each other.
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_padding()
    return copy


def batches(
    inputs: Mapping[str, npt.NDArray[Any]], batch_size: int, *, whole: bool = False
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Split arrays of one first dimension into consecutive batches.

    Args:
        inputs: arrays [N, ...] by name, such as those of `encode`.
        batch_size: rows per batch.
        whole: leave out a smaller last batch, for encoders with `examples_per_group` above 1.

    Yields:
        Views of the arrays: [batch_size, ...], the last one possibly smaller.

    Raises:
        ValueError: `batch_size` is below 1, or the arrays differ in their first dimension.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    sizes = {name: len(array) for name, array in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"inputs: expected arrays of one length, got {sizes}")
    size = next(iter(sizes.values()), 0)
    for start in range(0, size - batch_size + 1 if whole else size, batch_size):
        yield {name: array[start : start + batch_size] for name, array in inputs.items()}


def padding_share(inputs: Mapping[str, npt.NDArray[Any]]) -> float:
    """Return the share of positions that are padding; they cost the same time as tokens and compete for experts.

    Raises:
        TypeError: `inputs` is no mapping.
        ValueError: No ``input_mask``, or an empty one.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: expected a mapping with input_mask, got {type(inputs).__name__}")
    if "input_mask" not in inputs or not np.size(inputs["input_mask"]):
        raise ValueError(f"inputs: expected an input_mask that is not empty, got {sorted(map(str, inputs))}")
    return float(1 - np.count_nonzero(inputs["input_mask"]) / np.size(inputs["input_mask"]))
