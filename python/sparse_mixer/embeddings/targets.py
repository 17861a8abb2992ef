"""Files of vectors, written from front to back in bounded memory: parquet, numpy's arrays and JSON lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.atomic_file import replacing
from sparse_mixer._core.extras import require
from sparse_mixer.embeddings.sources import Rows

ENDINGS = (".parquet", ".npy", ".jsonl")
"""Endings of files that are written."""

EMBEDDING = "embedding"
"""The column of the vectors."""

# The key of what a parquet file says of itself.
_KEY = b"sparse_mixer"
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = 192
_BESIDE = ".json"


def target_ending(path: str) -> str:
    """One of `ENDINGS`, from a file's name.

    Raises:
        ValueError: Another ending.
    """
    found = next((ending for ending in ENDINGS if path.lower().endswith(ending)), None)
    if found is None:
        raise ValueError(f"target: got {path!r}, expected a name that ends with {', '.join(ENDINGS)}")
    return found


class Writer:
    """Writes vectors, and columns beside them, to a new file."""

    def __init__(self, path: str, ending: str, keep: Sequence[str], about: Mapping[str, Any], schema: Any) -> None:
        """Begin a file.

        Args:
            path: Its name while it is written.
            ending: One of `ENDINGS`.
            keep: Names of the columns beside the vectors; arrays of numpy have none.
            about: What the file says of itself; ``dim`` and ``dtype`` say what a vector is.
            schema: Types of a parquet file's columns; None takes them from the first rows.
        """
        self._path, self._ending, self._keep, self._about, self._schema = path, ending, keep, about, schema
        self._dim, self._dtype = int(about["dim"]), np.dtype(about["dtype"])
        self._parquet: Any = None
        self._stream: IO[bytes] | None = None
        self.rows = 0
        if ending != ".parquet":
            self._stream = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        if ending == ".npy":
            self._stream.write(_npy_header(self._dtype, 0, self._dim))  # type: ignore[union-attr]

    def write(self, window: Sequence[Rows], vectors: npt.NDArray[Any]) -> None:
        """Append rows and their vectors [N, D]."""
        self.rows += len(vectors)
        if self._ending == ".parquet":
            table = self._table(window, vectors)
            if self._parquet is None:
                self._parquet = _parquet_writer(self._path, table.schema)
            self._parquet.write_table(table, row_group_size=max(len(vectors), 1))
            return
        assert self._stream is not None
        if self._ending == ".npy":
            self._stream.write(np.ascontiguousarray(vectors).data)
            return
        lines = zip(self._records(window), _numbers(vectors), strict=True)
        self._stream.writelines(f'{head}"{EMBEDDING}": [{numbers}]}}\n'.encode() for head, numbers in lines)

    def close(self) -> None:
        """Write what is left."""
        if self._ending == ".parquet":
            if self._parquet is None:
                columns: list[Any] = [[] for _ in self._keep]
                self.write([Rows([], columns)], np.empty((0, self._dim), self._dtype))
            self._parquet.close()
        if self._stream is not None:
            if self._ending == ".npy":
                self._stream.seek(0)
                self._stream.write(_npy_header(self._dtype, self.rows, self._dim))
            self._stream.close()

    def _table(self, window: Sequence[Rows], vectors: npt.NDArray[Any]) -> Any:
        pa = require("pyarrow", "parquet")
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        vector_type = pa.list_(pa.field("element", pa.from_numpy_dtype(self._dtype)), self._dim)
        columns = []
        for number, name in enumerate(self._keep):
            chunks = [rows.columns[number] for rows in window]
            kind = None if self._schema is None else self._schema.field(name).type
            columns.append(_column(pa, name, chunks, kind))
        if self._schema is None:
            fields = [(name, column.type) for name, column in zip(self._keep, columns, strict=True)]
            self._schema = pa.schema([*fields, (EMBEDDING, vector_type)])
        schema = self._schema.with_metadata({_KEY: json.dumps(self._about).encode()})
        return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, type=vector_type)], schema=schema)

    def _records(self, window: Sequence[Rows]) -> Iterator[str]:
        """What stands before the vector in a line."""
        for rows in window:
            columns = [column if isinstance(column, list) else column.to_pylist() for column in rows.columns]
            for values in zip(*columns, strict=True) if columns else [()] * len(rows.texts):
                try:
                    parts = [f"{json.dumps(name)}: {json.dumps(v, ensure_ascii=False)}, " for name, v in
                             zip(self._keep, values, strict=True)]  # fmt: skip
                except TypeError as error:
                    raise ValueError(f"keep: {error}; write to a .parquet file, or leave the column out") from None
                yield "{" + "".join(parts)


def about_file(path: str) -> dict[str, Any] | None:
    """What a file of vectors says of itself; None if it is not one that this library made, or not whole.

    Raises:
        OSError: It cannot be read.
        ImportError: `pyarrow` is not installed, for parquet.
    """
    if target_ending(path) == ".parquet":
        pq = require("pyarrow.parquet", "parquet")
        try:
            stored = pq.read_metadata(path)
        except ValueError:  # pyarrow's name for a damaged file
            return None
        about = _parsed((stored.metadata or {}).get(_KEY, b""))
        return None if about is None else {**about, "rows": stored.num_rows}
    if not os.path.isfile(path + _BESIDE):
        return None
    with open(path + _BESIDE, "rb") as file:
        about = _parsed(file.read(1 << 24))
    return about if about is not None and about.get("bytes") == os.path.getsize(path) else None


def write_about(path: str, temporary: str, about: Mapping[str, Any]) -> None:
    """Write what a file that is about to be moved to `path` says of itself, if it has no room for it.

    This comes first: a crash in between leaves no file of vectors without it.
    """
    if target_ending(path) != ".parquet":
        content = {**about, "bytes": os.path.getsize(temporary)}
        with replacing(path + _BESIDE) as name, open(name, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)


def remove(path: str) -> None:
    """Remove a file of vectors, and what says what it is."""
    for name in (path, path + _BESIDE):
        if os.path.exists(name):
            os.remove(name)


def join(parts: Sequence[str], path: str, ending: str, about: Mapping[str, Any]) -> None:
    """Write the rows of several files, in their order, to one."""
    if ending == ".parquet":
        pq = require("pyarrow.parquet", "parquet")
        schema = pq.read_schema(parts[0]).with_metadata({_KEY: json.dumps(about).encode()})
        with _parquet_writer(path, schema) as writer:
            for part in parts:
                with pq.ParquetFile(part) as file:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group)
                        writer.write_table(table.replace_schema_metadata(schema.metadata), max(len(table), 1))
        return
    with open(path, "wb") as target:
        if ending == ".npy":
            dim, dtype = int(about["dim"]), np.dtype(about["dtype"])
            size = sum(os.path.getsize(part) - _HEADER for part in parts)
            target.write(_npy_header(dtype, size // (dim * dtype.itemsize), dim))
        for part in parts:
            with open(part, "rb") as file:
                file.seek(_HEADER if ending == ".npy" else 0)
                shutil.copyfileobj(file, target, 1 << 20)


def part_schema(path: str) -> Any:
    """Types of the columns of a parquet file."""
    return require("pyarrow.parquet", "parquet").read_schema(path)


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        about = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) and "digest" in about else None


def _npy_header(dtype: np.dtype[Any], rows: int, dim: int) -> bytes:
    """Always of one size, so that it can be written again when the number of rows is known."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": (rows, dim)})
    size = _HEADER - len(_MAGIC) - 2
    return _MAGIC + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


def _numbers(vectors: npt.NDArray[Any]) -> Iterator[str]:
    """The numbers of each row as JSON: 9 digits tell all float32 apart."""
    if vectors.dtype != np.float32:
        return (", ".join(map(str, row)) for row in vectors.tolist())
    if not np.isfinite(vectors).all():
        raise ValueError("target: a vector has numbers that are not finite, which JSON cannot say")
    return (", ".join([f"{number:.9g}" for number in row]) for row in vectors.tolist())


def _column(pa: Any, name: str, chunks: list[Any], kind: Any) -> Any:
    """A column of Arrow arrays, or of lists of what JSON has."""
    try:
        if kind is None and any(isinstance(chunk, list) for chunk in chunks):
            kind = pa.array([value for chunk in chunks for value in chunk]).type
            kind = pa.string() if pa.types.is_null(kind) else kind
        arrays = [pa.array(chunk, type=kind) if isinstance(chunk, list) else chunk for chunk in chunks]
        return pa.chunked_array(arrays, type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        expected = "values of one type" if kind is None else f"{kind} as in the first rows"
        raise ValueError(f"keep: column {name!r}: expected {expected}: {error}") from None


def _parquet_writer(path: str, schema: Any) -> Any:
    pq = require("pyarrow.parquet", "parquet")
    # Numbers of vectors do not shrink; trying would take time.
    compression = dict.fromkeys(_leaves(schema), "ZSTD") | {f"{EMBEDDING}.list.element": "NONE"}
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=False, write_statistics=False)


def _leaves(schema: Any) -> list[str]:
    """Paths of the columns that values of nested types are stored in."""
    pq = require("pyarrow.parquet", "parquet")
    pa = require("pyarrow", "parquet")
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        writer.write_table(schema.empty_table())
    stored = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [stored.column(number).path for number in range(len(stored))]
