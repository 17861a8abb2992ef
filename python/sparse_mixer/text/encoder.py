"""`TextEncoder`: text in, vectors out, with the names of `sentence-transformers` and fastembed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_bool, as_positive, short
from sparse_mixer.embeddings.quantize import PRECISIONS, quantize_embeddings
from sparse_mixer.text.encode_arguments import as_texts, check_out, refuse
from sparse_mixer.text.progress import progress
from sparse_mixer.text.text_model import TextModel
from sparse_mixer.text.tokens import Tokens

Floats = npt.NDArray[np.float32]
_Method = TypeVar("_Method", bound=Callable[..., Any])

# Texts that are tokenised and sorted together: enough for batches of alike lengths, few enough to hold.
_WINDOW = 4096
# Rows per pass of `embed`; its own batches say how many texts are sorted together.
_ROWS = 32
QUERY_PROMPTS = ("query",)
"""Prompts that `encode_query` uses, the first that there is."""
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Prompts that `encode_document` uses, the first that there is."""


class Chunks(NamedTuple):
    """Parts of a long text."""

    embeddings: Floats
    """Vectors [C, D]."""
    spans: list[tuple[int, int]]
    """Where each part begins and ends in the text, in characters."""


def _with_prompt(encode: _Method, name: str, prompts: Sequence[str], doc: str) -> _Method:
    """`encode`, arguments and all, under another name: the first of `prompts` that the object has is its default."""

    @functools.wraps(encode)
    def method(
        self: TextEncoder,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **rest: Any,
    ) -> Any:
        if prompt is None and prompt_name is None:
            prompt_name = next((known for known in prompts if known in self.prompts), None)
        return encode(self, inputs, prompt_name, prompt, *args, **rest)

    method.__name__, method.__qualname__, method.__doc__ = name, f"TextEncoder.{name}", doc
    return cast(_Method, method)


class TextEncoder(TextModel):
    """Encodes texts as vectors: tokenises, sorts by length, runs the encoder, pools, and restores the order.

    A text has the same vector, to the bit, alone and in any batch. Encoders whose blocks all attend take as many
    positions as the longest text of a batch; others mix positions or have experts, and always see the length that
    they were built for. One object may be used from several threads at once.

    Examples:
        >>> from sparse_mixer import SparseMixer
        >>> from sparse_mixer.text import TextEncoder, train_tokenizer
        >>> tokenizer = train_tokenizer(["red apples", "green pears"], 60)
        >>> sizes = dict(hidden_size=16, num_layers=1, inner_dim=32, max_sequence_length=8)
        >>> model = TextEncoder(SparseMixer(60, **sizes, seed=0), tokenizer)
        >>> model.encode(["red pears", "green apples"]).shape
        (2, 16)

    Attributes:
        encoder: The `SparseMixer`.
        tokenizer: The `tokenizers.Tokenizer`; its own truncation and padding are not heeded.
        pooling: Modes of pooling, whose vectors are put side by side.
        normalize: Whether vectors always have length 1, as a folder may say.
        prompts: Texts that `prompt_name` puts in front, by name.
        default_prompt_name: The prompt where none is named; None for none.
        truncate_dim: How many numbers of each vector are kept; None for all.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
    """

    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        *,
        out: npt.NDArray[Any] | None = None,
        on_truncation: str = "warn",
    ) -> Any:
        """Encode texts.

        Args:
            inputs: A text, or N texts or pairs of texts in a list or another iterable.
            prompt_name: Which of `prompts` to put in front of each text; None for `default_prompt_name`.
            prompt: A text to put in front, instead.
            batch_size: Texts per pass through the encoder.
            show_progress_bar: Whether to show progress.
            output_value: ``"sentence_embedding"``, or ``"token_embeddings"`` for the vectors of all tokens, special
                ones included.
            precision: ``"float32"``, or what `embeddings.quantize_embeddings` takes; the ranges of 8-bit numbers are
                those of the texts given.
            convert_to_numpy: Whether the vectors are one array; otherwise they are a list of arrays.
            convert_to_tensor: Must be False: there are no tensors here.
            device: None or ``"cpu"``.
            normalize_embeddings: Whether to divide vectors by their lengths.
            truncate_dim: How many numbers of each vector to keep; None as the object has it.
            pool: Must be None: threads share the work.
            out: Array to write to, [N, D] of the precision's type.
            on_truncation: What happens where a text has more than `max_seq_length` tokens, beside cutting it:
                ``"warn"``, ``"error"`` or ``"ignore"``.

        Returns:
            float32 [N, D] ([D] for a single text), or of the type of `precision`; for ``"token_embeddings"`` a list
            of float32 [tokens, H] (or one).

        Raises:
            TypeError: Something else than texts.
            ValueError: An argument that cannot be; with ``on_truncation="error"`` a text that is too long.
            KeyboardInterrupt: Interrupted.
        """
        refuse(convert_to_tensor=convert_to_tensor, device=device, pool=pool)
        if precision not in PRECISIONS:
            known = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"precision: got {precision!r}, expected one of {known}")
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise ValueError(f"output_value: got {output_value!r}, expected 'sentence_embedding' or 'token_embeddings'")
        of_tokens = output_value == "token_embeddings"
        if of_tokens and (out is not None or precision != "float32"):
            raise ValueError("output_value: 'token_embeddings' go without out and precision")
        rows, unit = as_positive("batch_size", batch_size), as_bool("normalize_embeddings", normalize_embeddings)
        single = isinstance(inputs, str)
        texts = [inputs] if single else as_texts(inputs)
        shows = show_progress_bar is not None and as_bool("show_progress_bar", show_progress_bar)
        front, dim = self.prompt_text(prompt_name, prompt), self.dimension(truncate_dim)
        shape = (len(texts), dim)
        direct = out is not None and precision == "float32"
        if direct:
            check_out(out, shape, "float32")
        vectors: Any = [] if of_tokens else out if direct else np.empty(shape, np.float32)
        with progress(len(texts), shows) as advance:
            for first in range(0, len(texts), _WINDOW):
                window = texts[first : first + _WINDOW]
                tokens = self.to_tokens(window, None, front, on_truncation=on_truncation, first=first)
                if of_tokens:
                    vectors += self._passes.token_vectors(tokens, rows, advance)
                else:
                    self._run(tokens, rows, vectors[first:], advance, unit, dim)
        if precision != "float32":
            vectors = quantize_embeddings(vectors, precision)
            if out is not None:
                check_out(out, vectors.shape, vectors.dtype.name)
                out[...] = vectors
                vectors = out
        if single:
            return vectors[0]
        return vectors if of_tokens or as_bool("convert_to_numpy", convert_to_numpy) else list(vectors)

    encode_query = _with_prompt(
        encode,
        "encode_query",
        QUERY_PROMPTS,
        """`encode` with the prompt ``"query"``, if there is one and none is given.""",
    )
    encode_document = _with_prompt(
        encode,
        "encode_document",
        DOCUMENT_PROMPTS,
        """`encode` with the prompt ``"document"``, ``"passage"`` or ``"corpus"``, where none is given.""",
    )

    def embed(
        self,
        documents: str | Iterable[str],
        batch_size: int = 256,
        parallel: int | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        on_truncation: str = "warn",
    ) -> Iterator[Floats]:
        """Encode texts one after the other, as fastembed does, in memory for `batch_size` of them.

        Args:
            documents: Texts, of which no more than `batch_size` are taken at a time; or one text.
            batch_size: Texts that are sorted by length and encoded together.
            parallel: Must be None or 0: threads share the work.
            prompt_name: As for `encode`, like all that follow.
            prompt: A text to put in front.
            normalize_embeddings: Whether to divide vectors by their lengths.
            truncate_dim: How many numbers of each vector to keep.
            on_truncation: ``"warn"``, ``"error"`` or ``"ignore"``.

        Yields:
            A vector [D] per text, in the order of the texts.
        """
        if parallel:
            raise ValueError(
                f"parallel: got {parallel}, expected None: num_threads says how many threads share the work"
            )
        size = as_positive("batch_size", batch_size)
        texts = iter([documents] if isinstance(documents, str) else documents)
        while window := list(itertools.islice(texts, size)):
            yield from self.encode(
                window,
                prompt_name,
                prompt,
                min(size, _ROWS),
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                on_truncation=on_truncation,
            )

    def encode_chunks(
        self,
        text: str,
        chunk_tokens: int | None = None,
        overlap: int = 0,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> Chunks:
        """Encode a long text in parts.

        Args:
            text: The text.
            chunk_tokens: Tokens per part, special tokens not counted; None for as many as a text may have.
            overlap: Tokens that neighbouring parts have in common.
            batch_size: Parts per pass through the encoder.
            normalize_embeddings: As for `encode`, like all that follow.
            truncate_dim: How many numbers of each vector to keep.
            precision: Type of the numbers.

        Returns:
            Vectors and places of the parts; none for a text without tokens.

        Raises:
            ValueError: More tokens per part than a text may have, or an overlap as large as a part.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a text, got {short(text)} ({type(text).__name__})")
        room = self.max_seq_length - self._cutter.special
        size = room if chunk_tokens is None else as_positive("chunk_tokens", chunk_tokens)
        if size > room:
            raise ValueError(f"chunk_tokens: got {size}, expected at most {room}, max_seq_length less special tokens")
        if not 0 <= overlap < size:
            raise ValueError(f"overlap: got {overlap}, expected at least 0 and less than chunk_tokens ({size})")
        tokens, spans = self._cutter.parts(text, size, overlap)
        vectors = self.encode_tokens(
            tokens, batch_size, normalize_embeddings=normalize_embeddings, truncate_dim=truncate_dim
        )
        return Chunks(quantize_embeddings(vectors, precision), spans)

    # In two steps -------------------------------------------------------------------------------------------------

    def to_tokens(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        on_truncation: str = "warn",
        first: int = 0,
    ) -> list[Tokens]:
        """The first step of `encode` alone: the tokens of texts, for `encode_tokens`.

        Args:
            inputs: N texts or pairs of texts.
            prompt_name: As for `encode`, like all that follow.
            prompt: A text to put in front.
            on_truncation: ``"warn"``, ``"error"`` or ``"ignore"``.
            first: The number of the first text, for messages.
        """
        front = self.prompt_text(prompt_name, prompt)
        return self._cutter.tokens(inputs, front, self.max_seq_length, on_truncation, first)

    def encode_tokens(
        self,
        tokens: Sequence[Tokens],
        batch_size: int = 32,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Floats:
        """The second step of `encode` alone.

        Args:
            tokens: The tokens of N texts, as `to_tokens` gives them.
            batch_size: As for `encode`, like the next two.
            normalize_embeddings: Whether to divide vectors by their lengths.
            truncate_dim: How many numbers of each vector to keep.
            advance: Told after each pass how many more texts are done.

        Returns:
            Vectors [N, D].
        """
        dim = self.dimension(truncate_dim)
        vectors = np.empty((len(tokens), dim), np.float32)
        rows, unit = as_positive("batch_size", batch_size), as_bool("normalize_embeddings", normalize_embeddings)
        self._run(tokens, rows, vectors, advance, unit, dim)
        return vectors

    def positions(self, tokens: Tokens) -> int:
        """Positions that a text takes in a pass: its tokens, or the length that the encoder was built for."""
        return self._passes.positions(len(tokens.ids))

    def _run(
        self, tokens: Sequence[Tokens], rows: int, out: Any, advance: Callable[[int], None], unit: bool, dim: int
    ) -> None:
        self._passes.vectors(tokens, rows, out, advance, modes=self.pooling, dim=dim, unit_length=unit)
