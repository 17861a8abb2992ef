"""What a `TextEncoder` holds and says of itself; `encoder.py` has what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_bool, as_positive
from sparse_mixer._core.paths import PathLike
from sparse_mixer.embeddings.similarity import SIMILARITIES
from sparse_mixer.networks import SparseMixer
from sparse_mixer.text.construction import as_modes, read_layers, read_parts
from sparse_mixer.text.dense import Dense
from sparse_mixer.text.encode_arguments import as_texts
from sparse_mixer.text.passes import Passes
from sparse_mixer.text.tokens import TextCutter

Floats = npt.NDArray[np.float32]


class TextModel:
    """An encoder, a tokenizer, and how vectors are made of its outputs."""

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
        self.encoder, self.tokenizer, about, self._max_seq_length = read_parts(
            folder_or_encoder, tokenizer, dtype, num_threads
        )
        arguments = self.encoder.arguments
        self.pooling = as_modes(pooling or about.pooling or ("mean",))
        if "pooled" in self.pooling and not arguments.with_pooler:
            raise ValueError("pooling: got 'pooled', but the encoder has no pooler")
        width = len(self.pooling) * arguments.hidden_size
        self._passes = Passes(self.encoder, self.tokenizer, read_layers(about, width))
        self._cutter = TextCutter(
            self.tokenizer,
            lower_case=about.lower_case,
            include_prompt=about.include_prompt,
            has_types=arguments.type_vocab_size > 1,
        )
        if max_seq_length is not None:
            self.max_seq_length = max_seq_length
        self.prompts = {**about.prompts} if prompts is None else dict(prompts)
        self.default_prompt_name = about.default_prompt_name if default_prompt_name is None else default_prompt_name
        if self.default_prompt_name is not None:
            self._prompt_of("default_prompt_name", self.default_prompt_name)
        self.truncate_dim: int | None = None
        wanted = about.truncate_dim if truncate_dim is None else truncate_dim
        self.truncate_dim = None if wanted is None else self.dimension(wanted)
        self.similarity_fn_name = similarity_fn_name or about.similarity or "cosine"
        if self.similarity_fn_name not in SIMILARITIES:
            known = ", ".join(map(repr, SIMILARITIES))
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

    def token_count(self, inputs: Any) -> Any:
        """How many tokens a text has, special ones included, before it is cut; a list of numbers for several texts."""
        single = isinstance(inputs, str)
        counts = [len(encoding.ids) for encoding in self._cutter.whole([inputs] if single else as_texts(inputs))]
        return counts[0] if single else counts

    def tokenizations(self, texts: Sequence[Any]) -> list[Any]:
        """The `tokenizers.Encoding` of each text or pair of texts, with special tokens, not cut."""
        return list(self._cutter.whole(texts))

    @property
    def max_seq_length(self) -> int:
        """Tokens per text, special tokens included; what is longer is cut. At most what the encoder takes."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self._max_seq_length = self._cutter.as_length(value, self.encoder.arguments.max_sequence_length)

    def memory_estimate(self, batch_size: int = 32, tokens: int | None = None) -> int:
        """Bytes that `encode` takes at its peak for weights and a pass of texts, besides texts and vectors.

        Args:
            batch_size: Texts per pass.
            tokens: Tokens of the longest text, special tokens included; None for `max_seq_length`.

        Raises:
            ValueError: More tokens than `max_seq_length`.
        """
        longest = self.max_seq_length if tokens is None else as_positive("tokens", tokens)
        if longest > self.max_seq_length:
            raise ValueError(f"tokens: got {longest}, expected at most max_seq_length, {self.max_seq_length}")
        outputs = {"pooled_output" if mode == "pooled" else "sequence_output" for mode in self.pooling}
        positions = self._passes.positions(longest)
        return self.encoder.memory_estimate(batch_size, outputs=sorted(outputs), sequence_length=positions)

    @property
    def layers(self) -> tuple[Dense | None, ...]:
        """What a folder has behind the pooling: `Dense` layers, and None where vectors are divided by their lengths."""
        return self._passes.layers

    @property
    def normalize(self) -> bool:
        """Whether vectors always have length 1, as a folder may say."""
        return self.layers[-1:] == (None,)

    @normalize.setter
    def normalize(self, value: bool) -> None:
        others = self.layers[:-1] if self.normalize else self.layers
        self._passes.layers = (*others, None) if as_bool("normalize", value) else others

    def get_embedding_dimension(self) -> int:
        """Numbers per vector."""
        return self.dimension()

    def similarity(self, embeddings1: npt.ArrayLike, embeddings2: npt.ArrayLike) -> Floats:
        """Similarities [N, M] of vectors [N, D] and [M, D], as `similarity_fn_name` says."""
        return SIMILARITIES[self.similarity_fn_name][0](embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: npt.ArrayLike, embeddings2: npt.ArrayLike) -> Floats:
        """Similarities [N] of vectors in the same places of [N, D] and [N, D]."""
        return SIMILARITIES[self.similarity_fn_name][1](embeddings1, embeddings2)

    def __repr__(self) -> str:
        pooling = "+".join(self.pooling)
        return (
            f"<TextEncoder: {self.encoder.arguments.num_layers} layers of {self.encoder.arguments.hidden_size}, "
            f"{pooling} pooling, up to {self.max_seq_length} tokens, {self.encoder.dtype}>"
        )

    def dimension(self, truncate_dim: int | None = None) -> int:
        """Numbers per vector where `truncate_dim` is asked for; None as the object has it.

        Raises:
            ValueError: Fewer than 1, or more than there are.
        """
        width = len(self.pooling) * int(self.encoder.arguments.hidden_size)
        for layer in self.layers:
            width = width if layer is None else layer.out_features
        if truncate_dim is None:
            return self.truncate_dim or width
        dim = as_positive("truncate_dim", truncate_dim)
        if dim > width:
            raise ValueError(f"truncate_dim: got {dim}, expected at most {width}")
        return dim

    def prompt_text(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """What is put in front of texts: `prompt`, or that of the name, or the default.

        Raises:
            ValueError: An unknown name.
        """
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        return "" if name is None else self._prompt_of("prompt_name", name)

    def _prompt_of(self, argument: str, name: str) -> str:
        if name not in self.prompts:
            raise ValueError(f"{argument}: got {name!r}, expected one of {sorted(self.prompts)}")
        return self.prompts[name]

    def settings(self) -> dict[str, bool]:
        """What a folder says besides, by name: whether vectors have length 1, texts are lower-cased, prompts pooled."""
        cutter = self._cutter
        return {"normalize": self.normalize, "lower_case": cutter.lower_case, "include_prompt": cutter.include_prompt}
