"""Files of texts, read from front to back in bounded memory: parquet, JSON lines, CSV and plain lines."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from sparse_mixer._core.checks import short
from sparse_mixer._core.extras import require
from sparse_mixer._core.json_text import mapping_of

FORMATS = (".parquet", ".jsonl", ".csv", ".tsv", ".txt")
"""Endings of files that are read; all but the first also with ``.gz`` behind."""

# Bytes of one line or value, far beyond any text: a file without line ends must not fill the memory.
_LONGEST = 1 << 26
# Rows that are read at a time.
_ROWS = 1024
_ENDS = 1 << 16


class Rows(NamedTuple):
    """Some rows of a file.

    Attributes:
        texts: The texts.
        columns: What is kept of the other columns, in the order asked for: lists or Arrow arrays, one value per row.
        shares: How much of the file comes before them, and with them, from 0 to 1.
    """

    texts: list[str]
    columns: list[Any]
    shares: tuple[float, float] = (0.0, 1.0)

    def cut(self, begin: int, end: int) -> Rows:
        """Rows `begin` to `end`."""
        end, (first, last) = min(end, len(self.texts)), self.shares
        shares = tuple(first + (last - first) * place / max(len(self.texts), 1) for place in (begin, end))
        return Rows(self.texts[begin:end], [column[begin:end] for column in self.columns], (shares[0], shares[1]))


class Source:
    """A file of texts.

    Attributes:
        path: Its name.
        column: The column with the texts.
        keep: Names of the columns that are kept.
    """

    def __init__(self, path: str, column: str, keep: Sequence[str] | None) -> None:
        """Look at a file.

        Args:
            path: Its name; the ending says what it is.
            column: The column with the texts; plain lines have just one, of any name.
            keep: Columns that are kept beside the vectors; ``["*"]`` for all, None for the texts.

        Raises:
            ValueError: An unknown ending, or a column that is not there.
            OSError: It cannot be read.
            ImportError: `pyarrow` is not installed, for parquet.
        """
        self.path, self.column = path, column
        self.ending = ending_of(path)
        self.bytes = os.path.getsize(path)
        self._parquet: Any = require("pyarrow.parquet", "parquet") if self.ending == ".parquet" else None
        self._done = 0.0
        known = self._columns()
        if known is not None and column not in known:
            raise ValueError(f"column: {path} has no column {column!r}, but {', '.join(map(repr, known))}")
        wanted = (column,) if keep is None else tuple(keep)
        self.keep = tuple(dict.fromkeys(known or (column,) if wanted == ("*",) else wanted))
        missing = [name for name in self.keep if known is not None and name not in known]
        if self.ending == ".txt":
            missing = [name for name in self.keep if name != column]
        if missing:
            raise ValueError(f"keep: {path} has no column {missing[0]!r}")

    def fingerprint(self) -> str:
        """A number that changes when the file does: of its size, its first and its last bytes."""
        digest = hashlib.blake2b(str(self.bytes).encode(), digest_size=16)
        with open(self.path, "rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, self.bytes - _ENDS))
            digest.update(file.read(_ENDS))
        return digest.hexdigest()

    def rows(self, skip: int = 0) -> Iterator[Rows]:
        """All rows but the first `skip`, some at a time.

        Raises:
            ValueError: A row without a text; the message has its number.
            OSError: The file cannot be read.
        """
        self._done = done = 0.0
        number = skip
        for rows in self._arrow(skip) if self.ending == ".parquet" else self._listed(skip):
            texts: list[Any] = rows.texts
            for place, text in enumerate(texts):
                if not isinstance(text, str):
                    got = "no value" if text is None else f"{short(text)} ({type(text).__name__})"
                    raise ValueError(f"{self.path}: row {number + place}: {self.column}: got {got}, expected a text")
            end = self._done
            if number == skip:
                done = end * skip / (skip + len(texts))
            number += len(texts)
            yield rows._replace(shares=(done, end))
            done = end

    # Parquet ------------------------------------------------------------------------------------------------------

    def _arrow(self, skip: int) -> Iterator[Rows]:
        names = list(dict.fromkeys([self.column, *self.keep]))
        # Without these two a whole row group is in memory.
        with self._parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            total, groups, left = file.metadata.num_rows, list(range(file.num_row_groups)), skip
            while groups and file.metadata.row_group(groups[0]).num_rows <= left:
                left -= file.metadata.row_group(groups.pop(0)).num_rows
            done = skip - left
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=names):
                done += len(batch)
                self._done = done / total
                if left >= len(batch):
                    left -= len(batch)
                    continue
                batch, left = batch.slice(left), 0
                columns = [batch.column(name) for name in self.keep]
                yield Rows(batch.column(self.column).to_pylist(), columns)

    # Lines --------------------------------------------------------------------------------------------------------

    def _columns(self) -> list[str] | None:
        """Names of the columns; None where none are written."""
        if self.ending == ".parquet":
            with self._parquet.ParquetFile(self.path) as file:
                return list(file.schema_arrow.names)
        if self.ending == ".txt":
            return None
        with contextlib.closing(self._records()) as records:
            first = next(records, None)
        if self.ending == ".jsonl":
            return None if first is None else list(first)
        return list(first or ())

    def _listed(self, skip: int) -> Iterator[Rows]:
        records = self._records()
        if self.ending in (".csv", ".tsv"):
            next(records, None)  # the names
        texts: list[Any] = []
        columns: list[list[Any]] = [[] for _ in self.keep]
        for number, record in enumerate(records):
            if number < skip:
                continue
            texts.append(record.get(self.column))
            for name, column in zip(self.keep, columns, strict=True):
                column.append(record.get(name))
            if len(texts) == _ROWS:
                yield Rows(texts, columns)
                texts, columns = [], [[] for _ in self.keep]
        if texts:
            yield Rows(texts, columns)

    def _records(self) -> Generator[dict[str, Any], None, None]:
        """The records of the file; the first one of a table maps its names to themselves."""
        lines = self._lines()
        if self.ending == ".txt":
            yield from ({self.column: line.rstrip("\r\n")} for line in lines)
        elif self.ending == ".jsonl":
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._record(number, line)
        else:
            csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
            table = csv.reader(lines, delimiter="\t" if self.ending == ".tsv" else ",", strict=True)
            names = None
            while True:
                try:
                    row = next(table, None)
                except csv.Error as error:
                    raise ValueError(f"{self.path}: line {table.line_num}: {error}") from None
                if row is None:
                    return
                if not row:
                    continue
                names = row if names is None else names
                if len(row) != len(names):
                    got = f"{len(row)} values, expected {len(names)}"
                    raise ValueError(f"{self.path}: line {table.line_num}: got {got}")
                yield dict(zip(names, row, strict=True))

    def _record(self, number: int, line: str) -> dict[str, Any]:
        return mapping_of(line, f"{self.path}: line {number}")

    def _lines(self) -> Iterator[str]:
        with open(self.path, "rb") as raw:
            packed = self.path.endswith(".gz")
            with gzip.open(raw) if packed else contextlib.nullcontext(raw) as file:
                for number in range(1, 1 << 62):
                    try:
                        line = file.readline(_LONGEST + 1)
                        if not line:
                            return
                        if len(line) > _LONGEST:
                            raise ValueError(f"{self.path}: line {number}: longer than {_LONGEST} bytes")
                        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        raise ValueError(f"{self.path}: line {number}: not UTF-8: {error}") from None
                    except (EOFError, gzip.BadGzipFile) as error:
                        raise ValueError(f"{self.path}: damaged: {error}") from None
                    self._done = raw.tell() / max(self.bytes, 1)
                    yield text


def ending_of(path: str) -> str:
    """One of `FORMATS`, from a file's name.

    Raises:
        ValueError: Another ending.
    """
    name = path.lower()
    plain = name.removesuffix(".gz")
    found = next((ending for ending in FORMATS if plain.endswith(ending)), None)
    if found is None or (found == ".parquet" and plain != name):
        raise ValueError(f"source: got {path!r}, expected a name that ends with {', '.join(FORMATS)} or these with .gz")
    return found


def windows(rows: Iterator[Rows], most_rows: int, most_characters: int) -> Iterator[list[Rows]]:
    """Rows in pieces that are encoded together, each cut from the front by the numbers of rows and characters alone."""
    window: list[Rows] = []
    count = size = 0
    for some in rows:
        begin = 0
        for place, text in enumerate(some.texts):
            count, size = count + 1, size + len(text)
            if count == most_rows or size >= most_characters:
                yield [*window, some.cut(begin, place + 1)]
                window, begin, count, size = [], place + 1, 0, 0
        if begin < len(some.texts):
            window.append(some.cut(begin, len(some.texts)))
    if window:
        yield window
