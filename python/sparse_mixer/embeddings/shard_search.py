"""Searching files of vectors, as `embed_shard` writes them, in bounded memory."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_positive
from sparse_mixer._core.extras import require
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.embeddings.search import semantic_search
from sparse_mixer.embeddings.similarity import as_matrix, cos_sim
from sparse_mixer.embeddings.targets import EMBEDDING, about_file, target_ending

Floats = npt.NDArray[np.float32]

_ROWS = 8192


class _Block(NamedTuple):
    """Vectors [N, D], and what the other columns have in the rows asked for."""

    vectors: npt.NDArray[Any]
    values: Callable[[Sequence[int]], list[dict[str, Any]]]


def search_files(
    query_embeddings: npt.ArrayLike,
    paths: Sequence[PathLike],
    top_k: int = 10,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[dict[str, Any]]]:
    """The vectors in files that are closest to each query.

    Args:
        query_embeddings: Vectors [Q, D], or one.
        paths: Files that `embed_shard` wrote. Of 8-bit numbers the ranges are undone, bits count as 1 and -1.
        top_k: How many per query, if there are as many.
        score_function: Scores [Q, N] of two matrices of vectors; larger is closer.

    Returns:
        For each query a list of ``{"score": float, "file": str, "row": int, ...}`` with the other columns of the row,
        the closest first; of equal scores that of the earlier file and row first.

    Raises:
        ValueError: A file that is not one of `embed_shard`, or has vectors of another size.
    """
    queries, count = as_matrix("query_embeddings", query_embeddings), as_positive("top_k", top_k)
    best: list[list[tuple[float, int, int, dict[str, Any]]]] = [[] for _ in queries]
    names = [file_name(path, "paths") for path in paths]
    for number, name in enumerate(names):
        about, first = about_vectors(name), 0
        dim = about["settings"]["truncate_dim"]
        if dim != queries.shape[1]:
            raise ValueError(f"query_embeddings: got vectors of {queries.shape[1]} numbers, but {name} has {dim}")
        for block in _blocks(name, about):
            vectors = _restored(block.vectors, about)
            found = semantic_search(
                queries, vectors, corpus_chunk_size=_ROWS, top_k=count, score_function=score_function
            )
            for hits, kept in zip(found, best, strict=True):
                places = [hit["corpus_id"] for hit in hits]
                for hit, place, values in zip(hits, places, block.values(places), strict=True):
                    kept.append((-hit["score"], number, first + place, values))
                kept[:] = heapq.nsmallest(count, kept, key=lambda entry: entry[:3])
            first += len(vectors)
    return [
        [{"score": -score, "file": names[number], "row": row, **values} for score, number, row, values in kept]
        for kept in best
    ]


def about_vectors(path: str) -> dict[str, Any]:
    """What a file of `embed_shard` says of itself.

    Raises:
        ValueError: It is none.
        OSError: It cannot be read.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    about = about_file(path)
    if about is None:
        raise ValueError(f"{path}: not a whole file of vectors that sparse_mixer wrote")
    return about


def _restored(vectors: npt.NDArray[Any], about: Mapping[str, Any]) -> Floats:
    """Vectors as they were, as far as the bits tell."""
    precision = about["settings"]["precision"]
    if precision == "float32":
        return vectors.astype(np.float32, copy=False)
    if precision.endswith("binary"):
        packed = vectors if precision == "ubinary" else (vectors.astype(np.int16) + 128).astype(np.uint8)
        bits = np.unpackbits(packed, axis=1, count=about["settings"]["truncate_dim"])
        return bits.astype(np.float32) * 2 - 1
    least, largest = np.array(about["ranges"], np.float32)
    levels = vectors.astype(np.float32) + (128 if precision == "int8" else 0)
    restored: Floats = levels * ((largest - least) / 255) + least
    return restored


def _blocks(path: str, about: Mapping[str, Any]) -> Iterator[_Block]:
    ending, dim, dtype = target_ending(path), int(about["dim"]), np.dtype(about["dtype"])
    if ending == ".npy":
        array = np.load(path, mmap_mode="r")
        for first in range(0, len(array), _ROWS):
            yield _Block(np.array(array[first : first + _ROWS]), lambda places: [{} for _ in places])
    elif ending == ".parquet":
        with require("pyarrow.parquet", "parquet").ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS):
                column = batch.column(EMBEDDING)
                vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), dim)
                yield _Block(vectors, _taker(batch))
    else:
        with open(path, encoding="utf-8") as stream:
            records: list[dict[str, Any]] = []
            for line in stream:
                records.append(json.loads(line))
                if len(records) == _ROWS:
                    yield _of_records(records, dtype)
                    records = []
            if records:
                yield _of_records(records, dtype)


def _taker(batch: Any) -> Callable[[Sequence[int]], list[dict[str, Any]]]:
    names = [name for name in batch.schema.names if name != EMBEDDING]

    def values(places: Sequence[int]) -> list[dict[str, Any]]:
        return [{name: batch.column(name)[place].as_py() for name in names} for place in places]

    return values


def _of_records(records: list[dict[str, Any]], dtype: np.dtype[Any]) -> _Block:
    vectors = np.array([record.pop(EMBEDDING) for record in records], dtype)
    return _Block(vectors, lambda places: [records[place] for place in places])
