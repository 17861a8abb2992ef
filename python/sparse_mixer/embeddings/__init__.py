"""Comparing, searching and shortening vectors of texts, with the names and results of `sentence_transformers.util`.

`embed_shard` makes a file of vectors of a file of texts.
"""

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
