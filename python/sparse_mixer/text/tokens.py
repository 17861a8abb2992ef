"""Texts as token ids: what is put in front of them, how they are cut, and where their parts are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sparse_mixer._core.checks import as_positive
from sparse_mixer.text.tokenizing import with_same_parts

_TRUNCATIONS = ("warn", "error", "ignore")
# Characters that are tokenised at a time: some hundredths of a second.
_CHARACTERS = 1 << 16


class Tokens(NamedTuple):
    """A text as the encoder takes it."""

    ids: list[int]
    types: list[int]
    # Tokens at the start that are not pooled.
    skipped: int


class TextCutter:
    """Makes tokens of texts. The tokenizer's own truncation and padding are not heeded, and it is not changed."""

    def __init__(self, tokenizer: Any, *, lower_case: bool, include_prompt: bool, has_types: bool) -> None:
        """Around a `tokenizers.Tokenizer`.

        Args:
            tokenizer: The tokenizer.
            lower_case: Whether texts are lower-cased first.
            include_prompt: Whether the tokens of a prompt are pooled.
            has_types: Whether the encoder tells the second text of a pair from the first.
        """
        self.tokenizer = tokenizer
        self.special: int = tokenizer.num_special_tokens_to_add(False)
        """Special tokens of a single text."""
        self.lower_case, self.include_prompt, self._has_types = lower_case, include_prompt, has_types
        self._settings: dict[tuple[int, int], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_settings": {}}

    def tokens(self, texts: Sequence[Any], front: str, length: int, on_truncation: str, first: int) -> list[Tokens]:
        """The tokens of texts or pairs of texts.

        Args:
            texts: The texts.
            front: A prompt to put in front of each.
            length: Tokens per text at most, special tokens included.
            on_truncation: What happens where a text has more: ``"warn"``, ``"error"`` or ``"ignore"``.
            first: The number of the first text, for messages.

        Raises:
            ValueError: With ``"error"`` a text that is too long; another `on_truncation`.
        """
        if on_truncation not in _TRUNCATIONS:
            raise ValueError(f"on_truncation: got {on_truncation!r}, expected one of {list(_TRUNCATIONS)}")
        cutting = self._cutting(length, 0)
        skipped = 0
        if front and not self.include_prompt:
            # The special token that ends a text does not end a prompt.
            skipped = len(cutting.encode(self._prepared(front)).ids) - 1
        tokens: list[Tokens] = []
        cut: list[int] = []
        for encodings in self._encoded(cutting, texts, front):
            cut += [i for i, e in enumerate(encodings, len(tokens)) if len(e.ids) >= length and e.overflowing]
            tokens += [self._of(encoding, skipped) for encoding in encodings]
        if cut and on_truncation != "ignore":
            message = f"inputs[{first + cut[0]}]: more than max_seq_length={length} tokens"
            if on_truncation == "error":
                raise ValueError(f"{message}; cut it, encode it in parts (encode_chunks), or allow it by on_truncation")
            others = f", and {len(cut) - 1} more texts" if len(cut) > 1 else ""
            # Of who called `TextEncoder.encode`, which calls `to_tokens`.
            warnings.warn(f"{message}{others}: the rest is left out", UserWarning, stacklevel=4)
        return tokens

    def parts(self, text: str, size: int, overlap: int) -> tuple[list[Tokens], list[tuple[int, int]]]:
        """The tokens of parts of a text, and where each begins and ends in it, in characters.

        Args:
            text: The text.
            size: Tokens per part, special tokens not counted.
            overlap: Tokens that neighbouring parts have in common, fewer than `size`.
        """
        encoding = self._cutting(size + self.special, overlap).encode(self._prepared(text))
        parts = [part for part in (encoding, *encoding.overflowing) if len(part.ids) > self.special]
        # A part that the one before it has wholly is no part.
        spans = [_span(part) for part in parts]
        kept = [i for i, span in enumerate(spans) if i == 0 or span[1] > spans[i - 1][1]]
        return [self._of(parts[i], 0) for i in kept], [spans[i] for i in kept]

    def whole(self, texts: Sequence[Any]) -> Iterator[Any]:
        """The `tokenizers.Encoding` of each text, not cut."""
        for encodings in self._encoded(self._cutting(0, 0), texts, ""):
            yield from encodings

    def as_length(self, value: Any, longest: int) -> int:
        """`value` as a longest text, special tokens included.

        Raises:
            ValueError: It has no room for a token, or is more than `longest`.
        """
        length = as_positive("max_seq_length", value)
        if not self.special < length <= longest:
            raise ValueError(f"max_seq_length: got {length}, expected {self.special + 1} to {longest}")
        return length

    def _prepared(self, text: Any, front: str = "") -> Any:
        if isinstance(text, str):
            return (front + text).lower() if self.lower_case else front + text
        first, second = text
        return (self._prepared(first, front), self._prepared(second))

    def _encoded(self, cutting: Any, texts: Sequence[Any], front: str) -> Iterator[list[Any]]:
        """The encodings of texts, some at a time: no signal is seen while the package is at work."""
        some: list[Any] = []
        size = 0
        for text in texts:
            some.append(self._prepared(text, front))
            size += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
            if size >= _CHARACTERS:
                yield cutting.encode_batch(some)
                some, size = [], 0
        if some:
            yield cutting.encode_batch(some)

    def _cutting(self, length: int, stride: int) -> Any:
        """A tokenizer of the same parts that cuts to `length` tokens; 0 for none that cuts. Never changed once made."""
        cutting = self._settings.get((length, stride))
        if cutting is None:
            cutting = with_same_parts(self.tokenizer)
            cutting.no_padding()
            if length:
                cutting.enable_truncation(length, stride=stride)
            self._settings[length, stride] = cutting
        return cutting

    def _of(self, encoding: Any, skipped: int) -> Tokens:
        return Tokens(encoding.ids, encoding.type_ids if self._has_types else [0] * len(encoding.ids), skipped)


def _span(encoding: Any) -> tuple[int, int]:
    """Where the tokens of an encoding begin and end; special tokens are nowhere."""
    places = [
        place for place, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special
    ]
    return places[0][0], places[-1][1]
