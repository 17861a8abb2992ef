"""Comparing, searching and shortening vectors of texts, with the names and results of `sentence_transformers.util`."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_positive

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")

# Levels of 8-bit numbers.
_STEPS = 255
_BLOCK = 1 << 22


def _matrix(argument: str, vectors: npt.ArrayLike) -> Floats:
    array = np.asarray(vectors)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{argument}: expected numbers, got an array of {array.dtype}")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"{argument}: expected vectors [N, D], got shape {list(array.shape)}")
    return np.ascontiguousarray(array, np.float32)


def _pair(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    left, right = _matrix("a", a), _matrix("b", b)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"b: got vectors of {right.shape[1]} numbers, expected {left.shape[1]} as in a")
    return left, right


def normalize_embeddings(embeddings: npt.ArrayLike) -> Floats:
    """Vectors [N, D] divided by their lengths; those without length stay as they are."""
    array = _matrix("embeddings", embeddings)
    lengths = np.sqrt((array.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    scaled: Floats = (array / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def cos_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Cosines [N, M] of the angles between vectors [N, D] and [M, D]."""
    left, right = _pair(a, b)
    return normalize_embeddings(left) @ normalize_embeddings(right).T


def dot_score(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Scalar products [N, M]."""
    left, right = _pair(a, b)
    return left @ right.T


def euclidean_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Euclidean distances [N, M], negated so that larger means closer."""
    return _distances(*_pair(a, b), lambda x, y: np.sqrt(((x - y) ** 2).sum(axis=-1)))


def manhattan_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Sums of absolute differences [N, M], negated so that larger means closer."""
    return _distances(*_pair(a, b), lambda x, y: np.abs(x - y).sum(axis=-1))


def _distances(left: Floats, right: Floats, distance: Callable[[Any, Any], Any]) -> Floats:
    rows = max(1, _BLOCK // max(1, right.size))
    result = np.empty((len(left), len(right)), np.float32)
    for first in range(0, len(left), rows):
        result[first : first + rows] = -distance(left[first : first + rows, None], right[None])
    return result


def pairwise_cos_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Cosines [N] of the angles between vectors in the same places of [N, D] and [N, D]."""
    return pairwise_dot_score(normalize_embeddings(a), normalize_embeddings(b))


def pairwise_dot_score(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Scalar products [N] of vectors in the same places."""
    left, right = _equally_many(a, b)
    products: Floats = np.einsum("nd,nd->n", left, right)
    return products


def pairwise_euclidean_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Negated Euclidean distances [N] of vectors in the same places."""
    left, right = _equally_many(a, b)
    distances: Floats = -np.sqrt(((left - right) ** 2).sum(axis=1))
    return distances


def pairwise_manhattan_sim(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Negated sums of absolute differences [N] of vectors in the same places."""
    left, right = _equally_many(a, b)
    distances: Floats = -np.abs(left - right).sum(axis=1)
    return distances


def _equally_many(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    left, right = _pair(a, b)
    if len(left) != len(right):
        raise ValueError(f"b: got {len(right)} vectors, expected {len(left)} as in a")
    return left, right


SIMILARITIES: dict[str, tuple[Callable[..., Floats], Callable[..., Floats]]] = {
    "cosine": (cos_sim, pairwise_cos_sim),
    "dot": (dot_score, pairwise_dot_score),
    "euclidean": (euclidean_sim, pairwise_euclidean_sim),
    "manhattan": (manhattan_sim, pairwise_manhattan_sim),
}
"""The function between all pairs and that between pairs in the same places, by the name of the similarity."""


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
    queries, corpus = _matrix("query_embeddings", query_embeddings), _matrix("corpus_embeddings", corpus_embeddings)
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
    vectors, most = _matrix("embeddings", embeddings), as_positive("max_pairs", max_pairs)
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


def quantize_embeddings(
    embeddings: npt.ArrayLike,
    precision: str,
    ranges: npt.ArrayLike | None = None,
    calibration_embeddings: npt.ArrayLike | None = None,
) -> Array:
    """Vectors in fewer bits.

    Args:
        embeddings: Vectors [N, D].
        precision: ``"float32"``; ``"int8"`` or ``"uint8"``, 256 levels between the least and the largest value of each
            column; ``"binary"`` (int8) or ``"ubinary"`` (uint8), one bit per number, set where it is above 0, 8 of them
            to a byte.
        ranges: Least and largest value of each column, [2, D].
        calibration_embeddings: Vectors that the ranges are taken from. Without both, `embeddings` are.

    Returns:
        float32, int8 or uint8 [N, D], or [N, D / 8].

    Raises:
        ValueError: An unknown precision, or ranges of another shape.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}")
    vectors = _matrix("embeddings", embeddings)
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        source = (
            vectors if calibration_embeddings is None else _matrix("calibration_embeddings", calibration_embeddings)
        )
        if not len(source):
            return vectors.astype(precision)
        ranges = np.stack([source.min(axis=0), source.max(axis=0)])
    limits = _matrix("ranges", ranges)
    if limits.shape != (2, vectors.shape[1]):
        raise ValueError(f"ranges: got shape {list(limits.shape)}, expected [2, {vectors.shape[1]}]")
    least, largest = limits
    steps = np.where(largest > least, (largest - least) / np.float32(_STEPS), 1).astype(np.float32)
    levels = np.clip((vectors - least) / steps, 0, _STEPS)
    quantised: Array = levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    return quantised
