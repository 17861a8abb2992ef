"""Comparing, searching and shortening vectors of texts, with the names and results of `sentence_transformers.util`.

`embed_shard` makes a file of vectors of a file of texts, and `search_files` searches such files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparse_mixer.embeddings.quantize import PRECISIONS, quantize_embeddings
from sparse_mixer.embeddings.search import paraphrase_mining, paraphrase_mining_embeddings, semantic_search
from sparse_mixer.embeddings.similarity import (
    SIMILARITIES,
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
    normalize_embeddings,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
)

if TYPE_CHECKING:
    from sparse_mixer.embeddings.shard_search import search_files as search_files
    from sparse_mixer.embeddings.shards import Shard as Shard
    from sparse_mixer.embeddings.shards import embed_shard as embed_shard

__all__ = [
    "PRECISIONS",
    "SIMILARITIES",
    "cos_sim",
    "dot_score",
    "euclidean_sim",
    "manhattan_sim",
    "normalize_embeddings",
    "pairwise_cos_sim",
    "pairwise_dot_score",
    "pairwise_euclidean_sim",
    "pairwise_manhattan_sim",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "quantize_embeddings",
    "semantic_search",
]


def __getattr__(name: str) -> Any:
    # These stand on `sparse_mixer.text`, which stands on the other files here.
    if name in ("Shard", "embed_shard"):
        from sparse_mixer.embeddings import shards

        return getattr(shards, name)
    if name == "search_files":
        from sparse_mixer.embeddings.shard_search import search_files

        return search_files
    raise AttributeError(f"module 'sparse_mixer.embeddings' has no attribute {name!r}")
