"""Tokenisers, and texts as the arrays that an encoder takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arguments import as_positive
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
    tokenizers = require("tokenizers", "text")
    if as_positive("vocab_size", vocab_size) > _MOST_PIECES:
        raise ValueError(f"vocab_size: expected at most {_MOST_PIECES}, got {vocab_size}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts,
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
    tokenizer: Any, texts: Sequence[str] | Sequence[tuple[str, str]], sequence_length: int, pad_token: str = "[PAD]"
) -> dict[str, IntArray]:
    """Tokenise `texts` into the inputs of an encoder, each cut or padded to the one length that it takes.

    An encoder must see the length that it was built for: mixing layers and experts treat padding as tokens, so that
    padding to another length would change the results.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; the caller's own truncation and padding settings are left alone.
        texts: B texts, or pairs of texts.
        sequence_length: the encoder's `max_sequence_length`, S.
        pad_token: token whose id fills the rest.

    Returns:
        ``input_word_ids``, ``input_mask`` (1 for tokens, 0 for padding) and ``input_type_ids``, int32 [B, S].

    Raises:
        ValueError: The tokenizer has no `pad_token`, or the length is below 1.
    """
    as_positive("sequence_length", sequence_length)
    pad = tokenizer.token_to_id(pad_token)
    if pad is None:
        raise ValueError(f"pad_token: the tokenizer does not know {pad_token!r}")
    shape = (len(texts), sequence_length)
    inputs = {
        "input_word_ids": np.full(shape, pad, np.int32),
        "input_mask": np.zeros(shape, np.int32),
        "input_type_ids": np.zeros(shape, np.int32),
    }
    # A copy with truncation on: it keeps the closing [SEP] of a text that is cut.
    cutting = type(tokenizer).from_str(tokenizer.to_str())
    cutting.no_padding()
    cutting.enable_truncation(sequence_length)
    for row, encoding in enumerate(cutting.encode_batch(list(texts))):
        used = len(encoding.ids)
        inputs["input_word_ids"][row, :used] = encoding.ids
        inputs["input_mask"][row, :used] = 1
        inputs["input_type_ids"][row, :used] = encoding.type_ids
    return inputs


def batches(
    inputs: Mapping[str, npt.NDArray[Any]], batch_size: int, *, whole: bool = False
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Cut arrays of one first dimension into consecutive batches.

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
