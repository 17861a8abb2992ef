"""Cosines, products and distances between vectors, with the names and results of `sentence_transformers.util`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Numbers of the largest intermediate array of differences.
_BLOCK = 1 << 22


def as_matrix(argument: str, vectors: npt.ArrayLike) -> Floats:
    """Vectors float32 [N, D]; one vector [D] is a matrix of one row.

    Raises:
        TypeError: Not numbers.
        ValueError: Another number of dimensions.
    """
    array = np.asarray(vectors)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{argument}: expected numbers, got an array of {array.dtype}")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"{argument}: expected vectors [N, D], got shape {list(array.shape)}")
    return np.ascontiguousarray(array, np.float32)


def _pair(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    left, right = as_matrix("a", a), as_matrix("b", b)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"b: got vectors of {right.shape[1]} numbers, expected {left.shape[1]} as in a")
    return left, right


def normalize_embeddings(embeddings: npt.ArrayLike) -> Floats:
    """Vectors [N, D] divided by their lengths; those without length stay as they are."""
    array = as_matrix("embeddings", embeddings)
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
