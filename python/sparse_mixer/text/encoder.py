"""`TextEncoder`: text in, vectors out, with the names of `sentence-transformers` and fastembed."""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native, embeddings
from sparse_mixer._core.checks import as_bool, as_positive, short
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.networks import SparseMixer
from sparse_mixer.text.progress import progress
from sparse_mixer.text.sentence_folders import MODES, SentenceFolder, read_folder
from sparse_mixer.text.tokenizer_files import load_tokenizer, read_json
from sparse_mixer.text.tokenizing import check_tokenizer, is_text_or_pair, with_same_parts

Floats = npt.NDArray[np.float32]
_Method = TypeVar("_Method", bound=Callable[..., Any])

# Texts that are tokenised and sorted together: enough for batches of alike lengths, few enough to hold.
_WINDOW = 4096
# Rows per pass of `embed`; its own batches say how many texts are sorted together.
_ROWS = 32
_TRUNCATIONS = ("warn", "error", "ignore")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# Names of padding in the vocabularies of BERT and RoBERTa.
_PAD_TOKENS = ("[PAD]", "<pad>")


class Chunks(NamedTuple):
    """Parts of a long text."""

    embeddings: Floats
    """Vectors [C, D]."""
    spans: list[tuple[int, int]]
    """Where each part begins and ends in the text, in characters."""


class _Tokens(NamedTuple):
    """A text as the encoder takes it."""

    ids: list[int]
    types: list[int]
    # Tokens at the start that are not pooled.
    skipped: int


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


class TextEncoder:
    """Encodes texts as vectors: tokenises, sorts by length, runs the encoder, pools, and restores the order.

    A text has the same vector, to the bit, alone and in any batch. Encoders whose blocks all attend take as many
    positions as the longest text of a batch; others mix positions or have experts, and always see the length that
    they were built for. One object may be used from several threads at once.

    Example:
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

    def __init__(
        self,
        folder_or_encoder: PathLike | SparseMixer,
        tokenizer: Any = None,
        *,
        pooling: str | Sequence[str] | None = None,
        dtype: Any = None,
        num_threads: int | None = None,
        max_seq_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        similarity_fn_name: str | None = None,
    ) -> None:
        """Read a folder, or put an encoder and a tokenizer together. Nothing is downloaded.

        Args:
            folder_or_encoder: A folder of `sentence-transformers` (``modules.json`` and so on) or `transformers`, or an
                encoder.
            tokenizer: A `tokenizers.Tokenizer`, or the path of a ``tokenizer.json``, ``vocab.txt`` or folder; None for
                that of the folder.
            pooling: One or several of ``"cls"``, ``"max"``, ``"mean"``, ``"mean_sqrt_len_tokens"``,
                ``"weightedmean"``, ``"lasttoken"`` and ``"pooled"`` (the encoder's own pooler); None for what the
                folder says, or ``"mean"``.
            dtype: Storage type of the encoder's weights; None leaves an encoder as it is, and is float32 for folders.
            num_threads: Most threads a call uses; None as the encoder has it.
            max_seq_length: Tokens per text, special tokens included; None for what the folder says, at most what the
                encoder takes.
            prompts: Texts to put in front, by name; None for those of the folder.
            default_prompt_name: The prompt where none is named; None for that of the folder.
            truncate_dim: How many numbers of each vector are kept; None for what the folder says.
            similarity_fn_name: What `similarity` computes; None for what the folder says, or ``"cosine"``.

        Raises:
            ImportError: The package `tokenizers` is not installed (extra ``text``).
            CheckpointError: A damaged folder, or one of a model that is not computed.
            ValueError, TypeError: An argument that cannot be; the message names it.
            OSError: A file cannot be read.
        """
        about = SentenceFolder("")
        limits: list[int] = []
        if isinstance(folder_or_encoder, SparseMixer):
            self.encoder = folder_or_encoder if dtype is None else folder_or_encoder.astype(dtype)
            if tokenizer is None:
                raise TypeError("tokenizer: missing; an encoder has none of its own")
        else:
            folder = file_name(folder_or_encoder, "folder_or_encoder")
            about = read_folder(folder) if os.path.isdir(folder) else SentenceFolder(os.path.dirname(folder))
            source = about.encoder if os.path.isdir(folder) else folder
            options = {} if dtype is None else {"dtype": dtype}
            self.encoder = SparseMixer.load(source, num_threads=num_threads, **options)
            limits += _limits(about)
            tokenizer = about.encoder if tokenizer is None else tokenizer
        if num_threads is not None:
            self.encoder.num_threads = num_threads
        if isinstance(tokenizer, str | bytes | os.PathLike):
            tokenizer = load_tokenizer(tokenizer)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._pad_id = self._find_pad_id()
        self._cutting: dict[tuple[int, int], Any] = {}
        self.pooling = _modes(pooling or about.pooling or ("mean",))
        arguments = self.encoder.arguments
        if "pooled" in self.pooling and not arguments.with_pooler:
            raise ValueError("pooling: got 'pooled', but the encoder has no pooler")
        if arguments.embedding_layer is not None:
            raise ValueError(
                "folder_or_encoder: got an encoder with an own embedding_layer, expected one that takes ids"
            )
        # Where padding takes part in mixing or routing, the encoder has to see the length that it was built for.
        attends = len(arguments.layers_within("attention_layers")) == arguments.num_layers
        self._any_length = attends and not arguments.layers_within("moe_layers") and self._takes_less()
        self._max_seq_length: int = min([arguments.max_sequence_length, *limits])
        if max_seq_length is not None:
            self.max_seq_length = max_seq_length
        self.normalize = about.normalize
        self._lower_case, self._include_prompt = about.lower_case, about.include_prompt
        self.prompts = {**about.prompts} if prompts is None else dict(prompts)
        self.default_prompt_name = about.default_prompt_name if default_prompt_name is None else default_prompt_name
        if self.default_prompt_name is not None:
            self._prompt(self.default_prompt_name, None, "default_prompt_name")
        self.truncate_dim = self._dim(about.truncate_dim if truncate_dim is None else truncate_dim)
        self.similarity_fn_name = similarity_fn_name or about.similarity or "cosine"
        if self.similarity_fn_name not in embeddings.SIMILARITIES:
            known = ", ".join(map(repr, embeddings.SIMILARITIES))
            raise ValueError(f"similarity_fn_name: got {self.similarity_fn_name!r}, expected one of {known}")

    @classmethod
    def load(
        cls,
        folder: PathLike,
        tokenizer: Any = None,
        *,
        pooling: str | Sequence[str] | None = None,
        dtype: Any = None,
        num_threads: int | None = None,
        max_seq_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        similarity_fn_name: str | None = None,
    ) -> Self:
        """`TextEncoder(folder, ...)`, with the same arguments."""
        return cls(
            folder,
            tokenizer,
            pooling=pooling,
            dtype=dtype,
            num_threads=num_threads,
            max_seq_length=max_seq_length,
            prompts=prompts,
            default_prompt_name=default_prompt_name,
            truncate_dim=truncate_dim,
            similarity_fn_name=similarity_fn_name,
        )

    # Encoding -----------------------------------------------------------------------------------------------------

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
        _refuse(convert_to_tensor=convert_to_tensor, device=device, pool=pool)
        if precision not in embeddings.PRECISIONS:
            known = ", ".join(map(repr, embeddings.PRECISIONS))
            raise ValueError(f"precision: got {precision!r}, expected one of {known}")
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise ValueError(f"output_value: got {output_value!r}, expected 'sentence_embedding' or 'token_embeddings'")
        rows = as_positive("batch_size", batch_size)
        single = isinstance(inputs, str)
        texts = [inputs] if single else _texts(inputs)
        front = self._prompt(prompt_name, prompt)
        shows = show_progress_bar is not None and as_bool("show_progress_bar", show_progress_bar)
        if output_value == "token_embeddings":
            if out is not None or precision != "float32":
                raise ValueError("output_value: 'token_embeddings' go without out and precision")
            listed = self._token_embeddings(texts, front, rows, shows, on_truncation)
            return listed[0] if single else listed
        dim = self._dim(truncate_dim)
        width = self._width() if dim is None else dim
        direct = out is not None and precision == "float32"
        if direct:
            _check_out(out, (len(texts), width), "float32")
        vectors: Any = out if direct else np.empty((len(texts), width), np.float32)
        with progress(len(texts), shows) as advance:
            for first in range(0, len(texts), _WINDOW):
                window = texts[first : first + _WINDOW]
                self._encode_window(
                    window, front, rows, dim, normalize_embeddings, on_truncation, vectors[first:], advance, first
                )
        if precision != "float32":
            vectors = embeddings.quantize_embeddings(vectors, precision)
            if out is not None:
                _check_out(out, vectors.shape, vectors.dtype.name)
                out[...] = vectors
                vectors = out
        if single:
            return vectors[0]
        return vectors if as_bool("convert_to_numpy", convert_to_numpy) else list(vectors)

    encode_query = _with_prompt(
        encode,
        "encode_query",
        ("query",),
        """`encode` with the prompt ``"query"``, if there is one and none is given.""",
    )
    encode_document = _with_prompt(
        encode,
        "encode_document",
        _DOCUMENT_PROMPTS,
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
        special = self.tokenizer.num_special_tokens_to_add(False)
        room = self.max_seq_length - special
        size = room if chunk_tokens is None else as_positive("chunk_tokens", chunk_tokens)
        if size > room:
            raise ValueError(f"chunk_tokens: got {size}, expected at most {room}, max_seq_length less special tokens")
        if not 0 <= overlap < size:
            raise ValueError(f"overlap: got {overlap}, expected at least 0 and less than chunk_tokens ({size})")
        encoding = self._cutter(size + special, overlap).encode(self._prepared(text))
        parts = [part for part in (encoding, *encoding.overflowing) if len(part.ids) > special]
        # A part that the one before it has wholly is no part.
        spans = [_span(part) for part in parts]
        kept = [i for i, span in enumerate(spans) if i == 0 or span[1] > spans[i - 1][1]]
        tokens = [self._tokens(parts[i], 0) for i in kept]
        dim = self._dim(truncate_dim)
        vectors = np.empty((len(tokens), self._width() if dim is None else dim), np.float32)
        rows = as_positive("batch_size", batch_size)
        self._run(tokens, rows, dim, normalize_embeddings, vectors, lambda count: None)
        return Chunks(embeddings.quantize_embeddings(vectors, precision), [spans[i] for i in kept])

    # About --------------------------------------------------------------------------------------------------------

    def token_count(self, inputs: Any) -> Any:
        """How many tokens a text has, special ones included, before it is cut; a list of numbers for several texts."""
        single = isinstance(inputs, str)
        texts = [inputs] if single else _texts(inputs)
        counts = [len(encoding.ids) for encoding in self._cutter(0, 0).encode_batch(list(map(self._prepared, texts)))]
        return counts[0] if single else counts

    @property
    def max_seq_length(self) -> int:
        """Tokens per text, special tokens included; what is longer is cut. At most what the encoder takes."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        length, longest = as_positive("max_seq_length", value), self.encoder.arguments.max_sequence_length
        special = self.tokenizer.num_special_tokens_to_add(False)
        if not special < length <= longest:
            raise ValueError(f"max_seq_length: got {length}, expected {special + 1} to {longest}")
        self._max_seq_length = length

    def get_embedding_dimension(self) -> int:
        """Numbers per vector."""
        return self._width() if self.truncate_dim is None else self.truncate_dim

    def similarity(self, embeddings1: npt.ArrayLike, embeddings2: npt.ArrayLike) -> Floats:
        """Similarities [N, M] of vectors [N, D] and [M, D], as `similarity_fn_name` says."""
        return embeddings.SIMILARITIES[self.similarity_fn_name][0](embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: npt.ArrayLike, embeddings2: npt.ArrayLike) -> Floats:
        """Similarities [N] of vectors in the same places of [N, D] and [N, D]."""
        return embeddings.SIMILARITIES[self.similarity_fn_name][1](embeddings1, embeddings2)

    def __repr__(self) -> str:
        pooling = "+".join(self.pooling)
        return (
            f"<TextEncoder: {self.encoder.arguments.num_layers} layers of {self.encoder.arguments.hidden_size}, "
            f"{pooling} pooling, up to {self.max_seq_length} tokens, {self.encoder.dtype}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cutting": {}}

    # Parts of it --------------------------------------------------------------------------------------------------

    def _takes_less(self) -> bool:
        arguments = self.encoder.arguments
        paper = arguments.semantics == "paper"
        return bool(paper if arguments.shorter_sequences is None else arguments.shorter_sequences)

    def _find_pad_id(self) -> int:
        own = self.encoder.arguments.padding_id()
        if own is not None and own >= 0:
            return own
        found = (self.tokenizer.token_to_id(token) for token in _PAD_TOKENS)
        return next((number for number in found if number is not None), 0)

    def _width(self) -> int:
        return len(self.pooling) * int(self.encoder.arguments.hidden_size)

    def _dim(self, truncate_dim: int | None) -> int | None:
        if truncate_dim is None:
            return getattr(self, "truncate_dim", None)
        dim = as_positive("truncate_dim", truncate_dim)
        if dim > self._width():
            raise ValueError(f"truncate_dim: got {dim}, expected at most {self._width()}")
        return dim

    def _prompt(self, name: str | None, prompt: str | None, argument: str = "prompt_name") -> str:
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"{argument}: got {name!r}, expected one of {sorted(self.prompts)}")
        return self.prompts[name]

    def _prepared(self, text: Any, front: str = "") -> Any:
        if isinstance(text, str):
            return (front + text).lower() if self._lower_case else front + text
        first, second = text
        return (self._prepared(first, front), self._prepared(second))

    def _cutter(self, length: int, stride: int) -> Any:
        """A tokenizer of the same parts that cuts to `length` tokens; 0 for none that cuts. Never changed once made."""
        cutter = self._cutting.get((length, stride))
        if cutter is None:
            cutter = with_same_parts(self.tokenizer)
            cutter.no_padding()
            if length:
                cutter.enable_truncation(length, stride=stride)
            self._cutting[length, stride] = cutter
        return cutter

    def _tokens(self, encoding: Any, skipped: int) -> _Tokens:
        types = encoding.type_ids if self.encoder.arguments.type_vocab_size > 1 else [0] * len(encoding.ids)
        return _Tokens(encoding.ids, types, skipped)

    def _tokenized(self, texts: Sequence[Any], front: str, on_truncation: str, first: int) -> list[_Tokens]:
        if on_truncation not in _TRUNCATIONS:
            raise ValueError(f"on_truncation: got {on_truncation!r}, expected one of {list(_TRUNCATIONS)}")
        length = self.max_seq_length
        cutter = self._cutter(length, 0)
        prepared = [self._prepared(text, front) for text in texts]
        encodings = cutter.encode_batch(prepared)
        if on_truncation != "ignore":
            cut = [i for i, e in enumerate(encodings) if len(e.ids) >= length and e.overflowing]
            if cut:
                message = f"inputs[{first + cut[0]}]: more than max_seq_length={length} tokens"
                if on_truncation == "error":
                    raise ValueError(
                        f"{message}; cut it, encode it in parts (encode_chunks), or allow it by on_truncation"
                    )
                others = f", and {len(cut) - 1} more texts" if len(cut) > 1 else ""
                warnings.warn(f"{message}{others}: the rest is left out", UserWarning, stacklevel=4)
        skipped = 0
        if front and not self._include_prompt:
            # The special token that ends a text does not end a prompt.
            skipped = len(cutter.encode(self._prepared(front)).ids) - 1
        return [self._tokens(encoding, skipped) for encoding in encodings]

    def _batches(self, tokens: Sequence[_Tokens], rows: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Places of texts of about one length, and the arrays that the encoder takes."""
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place].ids), reverse=True)
        for start in range(0, len(order), rows):
            places = order[start : start + rows]
            longest = max(len(tokens[place].ids) for place in places)
            length = max(longest, 1) if self._any_length else self.encoder.arguments.max_sequence_length
            shape = (len(places), length)
            ids, types = np.full(shape, self._pad_id, np.int32), np.zeros(shape, np.int32)
            mask, pooled = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            for row, place in enumerate(places):
                one = tokens[place]
                used = len(one.ids)
                ids[row, :used], types[row, :used] = one.ids, one.types
                mask[row, :used] = 1
                pooled[row, one.skipped : used] = 1
            yield places, {"word_ids": ids, "mask": mask, "type_ids": types, "pooled_mask": pooled}

    def _run(
        self,
        tokens: Sequence[_Tokens],
        rows: int,
        dim: int | None,
        unit: bool,
        out: npt.NDArray[Any],
        advance: Callable[[int], None],
    ) -> None:
        options: dict[str, Any] = {"unit_length": self.normalize, "dim": dim, "unit_length_after": bool(unit)}
        for places, arrays in self._batches(tokens, rows):
            out[places] = _native.embed(self.encoder.core, **arrays, modes=list(self.pooling), **options)
            advance(len(places))

    def _encode_window(
        self,
        texts: Sequence[Any],
        front: str,
        rows: int,
        dim: int | None,
        unit: bool,
        on_truncation: str,
        out: npt.NDArray[Any],
        advance: Callable[[int], None],
        first: int,
    ) -> None:
        tokens = self._tokenized(texts, front, on_truncation, first)
        self._run(tokens, rows, dim, as_bool("normalize_embeddings", unit), out, advance)

    def _token_embeddings(
        self, texts: Sequence[Any], front: str, rows: int, shows: bool, on_truncation: str
    ) -> list[Floats]:
        results: list[Any] = [None] * len(texts)
        with progress(len(texts), shows) as advance:
            for first in range(0, len(texts), _WINDOW):
                tokens = self._tokenized(texts[first : first + _WINDOW], front, on_truncation, first)
                for places, arrays in self._batches(tokens, rows):
                    del arrays["pooled_mask"]
                    outputs, _ = self.encoder.core.forward(**arrays, outputs=["sequence_output"])
                    for row, place in enumerate(places):
                        used = len(tokens[place].ids)
                        results[first + place] = outputs["sequence_output"][row, :used].copy()
                    advance(len(places))
        return results


def _limits(about: SentenceFolder) -> list[int]:
    """What a folder says of the length of texts; what the tokenizer's settings say counts where nothing else does."""
    if about.max_seq_length is not None:
        return [about.max_seq_length]
    longest = read_json(os.path.join(about.encoder, "tokenizer_config.json")).get("model_max_length")
    # Some files have a number beyond all integers that stands for none.
    return [longest] if isinstance(longest, int) and 0 < longest < 1 << 31 else []


def _modes(pooling: str | Sequence[str]) -> tuple[str, ...]:
    modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"pooling: got {mode!r}, expected one of {', '.join(map(repr, MODES))}")
    return modes


def _texts(inputs: Any) -> list[Any]:
    if isinstance(inputs, Mapping | bytes) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs: expected a text or a list of texts, got {short(inputs)} ({type(inputs).__name__})")
    texts = list(inputs)
    for place, text in enumerate(texts):
        if not is_text_or_pair(text):
            kind = type(text).__name__
            raise TypeError(f"inputs[{place}]: expected a text or a pair of texts, got {short(text)} ({kind})")
    return texts


def _refuse(*, convert_to_tensor: Any, device: Any, pool: Any) -> None:
    """Say by name what is another package's business."""
    if convert_to_tensor:
        raise ValueError("convert_to_tensor: got True, but vectors are numpy arrays here; use torch.from_numpy on them")
    if device is not None and str(device) != "cpu":
        raise ValueError(f"device: got {device!r}, expected None or 'cpu': this library computes on CPUs")
    if pool is not None:
        raise ValueError("pool: expected None: num_threads says how many threads share the work, without processes")


def _check_out(out: Any, shape: tuple[int, ...], dtype: str) -> None:
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out: expected an array {dtype} {list(shape)}, got {got}")


def _span(encoding: Any) -> tuple[int, int]:
    """Where the tokens of an encoding begin and end; special tokens are nowhere."""
    places = [
        place for place, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special
    ]
    return places[0][0], places[-1][1]
