"""Tokens through the encoder: batches of about one length, each a pass, pooled in the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer.embeddings.similarity import normalize_embeddings
from sparse_mixer.networks import SparseMixer
from sparse_mixer.text.dense import Dense
from sparse_mixer.text.tokens import Tokens

Floats = npt.NDArray[np.float32]

# Names of padding in the vocabularies of BERT and RoBERTa.
_PAD_TOKENS = ("[PAD]", "<pad>")


class Passes:
    """Runs an encoder on tokens; a text has the same result, to the bit, in any batch."""

    def __init__(self, encoder: SparseMixer, tokenizer: Any, layers: Sequence[Dense | None] = ()) -> None:
        """Around an encoder that takes ids.

        Args:
            encoder: The encoder.
            tokenizer: Its tokenizer.
            layers: What is done with pooled vectors; None stands for dividing them by their lengths.
        """
        arguments = encoder.arguments
        self._encoder = encoder
        self.layers: tuple[Dense | None, ...] = tuple(layers)
        self._pad_id = _pad_id(encoder, tokenizer)
        # Where padding takes part in mixing or routing, the encoder has to see the length that it was built for.
        attends = len(arguments.layers_within("attention_layers")) == arguments.num_layers
        self._any_length = attends and not arguments.layers_within("moe_layers") and _takes_less(encoder)

    def positions(self, tokens: int) -> int:
        """Positions that a text of so many tokens takes in a pass."""
        return max(tokens, 1) if self._any_length else int(self._encoder.arguments.max_sequence_length)

    def vectors(
        self,
        tokens: Sequence[Tokens],
        rows: int,
        out: npt.NDArray[Any],
        advance: Callable[[int], None],
        *,
        modes: Sequence[str],
        dim: int | None,
        unit_length: bool,
    ) -> None:
        """Write the vector of each text to its place in `out`.

        Args:
            tokens: N texts.
            rows: Texts per pass.
            out: Numbers [N, D].
            advance: Told how many more texts are done.
            modes: Modes of pooling.
            dim: How many numbers of each are kept behind all layers; None for all.
            unit_length: Whether they are divided by their lengths after that.
        """
        # Where there is nothing but this, the core does it with the pooling.
        in_core = self.layers in ((), (None,))
        options: dict[str, Any] = {"unit_length": False, "dim": None, "unit_length_after": False}
        if in_core:
            options = {"unit_length": self.layers == (None,), "dim": dim, "unit_length_after": unit_length}
        for places, arrays in self._batches(tokens, rows):
            vectors = _native.embed(self._encoder.core, **arrays, modes=list(modes), **options)
            out[places] = vectors if in_core else self._through_layers(vectors, dim, unit_length)
            advance(len(places))

    def _through_layers(self, vectors: Floats, dim: int | None, unit_length: bool) -> Floats:
        for layer in self.layers:
            vectors = normalize_embeddings(vectors) if layer is None else layer(vectors, self._encoder)
        vectors = vectors[:, :dim]
        return normalize_embeddings(vectors) if unit_length else vectors

    def token_vectors(self, tokens: Sequence[Tokens], rows: int, advance: Callable[[int], None]) -> list[Floats]:
        """The vectors [tokens, H] of all tokens of each text, `rows` texts per pass."""
        results: list[Any] = [None] * len(tokens)
        for places, arrays in self._batches(tokens, rows):
            del arrays["pooled_mask"]
            outputs, _ = self._encoder.core.forward(**arrays, outputs=["sequence_output"])
            for row, place in enumerate(places):
                results[place] = outputs["sequence_output"][row, : len(tokens[place].ids)].copy()
            advance(len(places))
        return results

    def _batches(self, tokens: Sequence[Tokens], rows: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Places of texts of about one length, and the arrays that the encoder takes."""
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place].ids), reverse=True)
        for start in range(0, len(order), rows):
            places = order[start : start + rows]
            shape = (len(places), self.positions(max(len(tokens[place].ids) for place in places)))
            ids, types = np.full(shape, self._pad_id, np.int32), np.zeros(shape, np.int32)
            mask, pooled = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            for row, place in enumerate(places):
                one = tokens[place]
                used = len(one.ids)
                ids[row, :used], types[row, :used] = one.ids, one.types
                mask[row, :used] = 1
                pooled[row, one.skipped : used] = 1
            yield places, {"word_ids": ids, "mask": mask, "type_ids": types, "pooled_mask": pooled}


def _takes_less(encoder: SparseMixer) -> bool:
    arguments = encoder.arguments
    paper = arguments.semantics == "paper"
    return bool(paper if arguments.shorter_sequences is None else arguments.shorter_sequences)


def _pad_id(encoder: SparseMixer, tokenizer: Any) -> int:
    own = encoder.arguments.padding_id()
    if own is not None and own >= 0:
        return int(own)
    found = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    return int(next((number for number in found if number is not None), 0))
