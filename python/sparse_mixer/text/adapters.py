"""`TextEncoder` in the shape that LangChain and Chroma ask for. Neither package is needed, nor imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer.text.encoder import TextEncoder


class LangChainEmbeddings:
    """What LangChain calls `Embeddings`: lists of numbers for documents and for a query.

    Examples:
        >>> from sparse_mixer import SparseMixer, TextEncoder
        >>> from sparse_mixer.text import train_tokenizer
        >>> from sparse_mixer.text.adapters import LangChainEmbeddings
        >>> tokenizer = train_tokenizer(["red apples", "green pears"], 60)
        >>> encoder = SparseMixer(60, hidden_size=16, num_layers=1, inner_dim=32, max_sequence_length=8, seed=0)
        >>> model = LangChainEmbeddings(TextEncoder(encoder, tokenizer))
        >>> len(model.embed_query("red pears"))
        16
    """

    def __init__(self, encoder: TextEncoder, **options: Any) -> None:
        """Wrap `encoder`; `options` go to its `encode_document` and `encode_query`, for example `batch_size`."""
        self.encoder = encoder
        self.options = options

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector per text."""
        vectors: list[list[float]] = self.encoder.encode_document(list(texts), **self.options).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        vector: list[float] = self.encoder.encode_query(text, **self.options).tolist()
        return vector

    async def aembed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """`embed_documents` on another thread."""
        import asyncio

        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` on another thread."""
        import asyncio

        return await asyncio.to_thread(self.embed_query, text)


class ChromaEmbeddingFunction:
    """What Chroma calls an `EmbeddingFunction`: called with ``input=``, a list of documents."""

    def __init__(self, encoder: TextEncoder, **options: Any) -> None:
        """Wrap `encoder`; `options` go to its `encode_document` and `encode_query`."""
        self.encoder = encoder
        self.options = options

    def __call__(self, input: Sequence[str]) -> list[npt.NDArray[np.float32]]:  # noqa: A002 (Chroma's name)
        """A vector per document."""
        return list(self.encoder.encode_document(list(input), **self.options))

    def embed_query(self, input: Sequence[str]) -> list[npt.NDArray[np.float32]]:  # noqa: A002 (Chroma's name)
        """A vector per query."""
        return list(self.encoder.encode_query(list(input), **self.options))

    @staticmethod
    def name() -> str:
        """The name under which Chroma stores it."""
        return "sparse_mixer"
