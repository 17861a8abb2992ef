"""The vectors closest to others, in blocks, with the results of `sentence_transformers.util`."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_positive
from sparse_mixer.embeddings.similarity import as_matrix, cos_sim

Array = npt.NDArray[Any]


def semantic_search(
    query_embeddings: npt.ArrayLike,
    corpus_embeddings: npt.ArrayLike,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[dict[str, Any]]]:
    """The vectors of a corpus that are closest to each query.

    Only a block of scores exists at a time.

    Args:
        query_embeddings: Vectors [Q, D], or one.
        corpus_embeddings: Vectors [N, D].
        query_chunk_size: Queries per block.
        corpus_chunk_size: Vectors of the corpus per block.
        top_k: How many per query, if there are as many.
        score_function: Scores [Q, N] of two matrices of vectors; larger is closer.

    Returns:
        For each query a list of ``{"corpus_id": int, "score": float}``, the closest first; of equal scores the earlier
        one first.
    """
    queries, corpus = as_matrix("query_embeddings", query_embeddings), as_matrix("corpus_embeddings", corpus_embeddings)
    sizes = [("query_chunk_size", query_chunk_size), ("corpus_chunk_size", corpus_chunk_size), ("top_k", top_k)]
    query_step, corpus_step, count = (as_positive(name, size) for name, size in sizes)
    results: list[list[dict[str, Any]]] = []
    for query in range(0, len(queries), query_step):
        block = queries[query : query + query_step]
        best: list[list[tuple[float, int]]] = [[] for _ in block]
        for first in range(0, len(corpus), corpus_step):
            scores = np.asarray(score_function(block, corpus[first : first + corpus_step]))
            for row, found in zip(scores, best, strict=True):
                found += [(float(row[at]), first + int(at)) for at in _largest(row, count)]
                found[:] = heapq.nsmallest(count, found, key=lambda pair: (-pair[0], pair[1]))
        results += [[{"corpus_id": place, "score": score} for score, place in found] for found in best]
    return results


def _largest(scores: Array, count: int) -> Array:
    """Places of the `count` largest scores; of equal ones the earlier."""
    if count >= len(scores):
        return np.arange(len(scores))
    limit = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, equal = np.flatnonzero(scores > limit), np.flatnonzero(scores == limit)
    return np.concatenate([above, equal[: count - len(above)]])


def paraphrase_mining_embeddings(
    embeddings: npt.ArrayLike,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[Any]]:
    """The pairs of vectors that are closest to each other.

    Args:
        embeddings: Vectors [N, D].
        query_chunk_size: Vectors per block.
        corpus_chunk_size: Vectors that each block is compared with at a time.
        max_pairs: How many pairs at most.
        top_k: How many partners of each vector are looked at.
        score_function: As in `semantic_search`.

    Returns:
        ``[score, i, j]`` with ``i < j``, the closest first.
    """
    vectors, most = as_matrix("embeddings", embeddings), as_positive("max_pairs", max_pairs)
    pairs: dict[tuple[int, int], float] = {}
    for first in range(0, len(vectors), as_positive("query_chunk_size", query_chunk_size)):
        block = vectors[first : first + query_chunk_size]
        found = semantic_search(block, vectors, len(block), corpus_chunk_size, top_k + 1, score_function)
        for number, partners in enumerate(found):
            for partner in partners:
                one, other = sorted((first + number, partner["corpus_id"]))
                if one != other:
                    pairs.setdefault((one, other), partner["score"])
    listed: list[list[Any]] = [[score, one, other] for (one, other), score in pairs.items()]
    return sorted(listed, key=lambda pair: (-pair[0], pair[1], pair[2]))[:most]


def paraphrase_mining(
    model: Any,
    sentences: list[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[Any]]:
    """The pairs of texts that are closest to each other; `model` is a `TextEncoder`, the rest as above."""
    vectors = model.encode(sentences, batch_size=batch_size, show_progress_bar=show_progress_bar)
    return paraphrase_mining_embeddings(vectors, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function)
