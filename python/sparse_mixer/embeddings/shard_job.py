"""How `embed_shard` gets from a source to a target: in one piece, or in parts that outlive a crash."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import sparse_mixer
from sparse_mixer._core.atomic_file import replacing
from sparse_mixer._core.json_text import mapping_of
from sparse_mixer.embeddings.quantize import quantize_embeddings
from sparse_mixer.embeddings.sources import Rows, Source, windows
from sparse_mixer.embeddings.targets import Writer, join, part_schema, remove, write_about
from sparse_mixer.text.encoder import TextEncoder
from sparse_mixer.text.fingerprint import depends_on_batches, digest, fingerprint

Progress = Callable[[int, float], None]

# Texts that are tokenised and sorted by length together: few enough to hold, whatever their length.
_ROWS = 4096
_CHARACTERS = 1 << 23


class Job:
    """A source, and how its texts become vectors.

    Attributes:
        about: What the target says of itself; its ``digest`` is that of all that the vectors depend on.
        part_rows: Rows per part; None for no parts.
    """

    def __init__(
        self,
        *,
        model: TextEncoder,
        source: Source,
        front: str,
        batch_size: int,
        unit: bool,
        dim: int,
        precision: str,
        on_truncation: str,
        part_rows: int | None,
        progress: Progress | None,
        ranges: npt.NDArray[np.float32] | None,
    ) -> None:
        """The arguments of `embed_shard`, checked."""
        self.part_rows = part_rows
        self._model, self._source, self._front, self._rows = model, source, front, batch_size
        self._unit, self._dim, self._precision, self._on_truncation = unit, dim, precision, on_truncation
        self._progress, self._ranges = progress, ranges
        about_model = fingerprint(model)
        settings = {
            "column": source.column,
            "keep": list(source.keep),
            "prompt": front,
            "normalize_embeddings": unit,
            "truncate_dim": dim,
            "precision": precision,
            "ranges": "of the first texts" if ranges is None else digest(ranges.tolist()),
        }
        if depends_on_batches(model):
            settings |= {"batch_size": batch_size, "part_rows": part_rows}
        content = {"name": os.path.basename(source.path), "content": source.fingerprint()}
        self.about: dict[str, Any] = {
            "digest": digest([about_model, settings, content["content"]]),
            "model": about_model,
            "settings": settings,
            "source": content,
            "dim": -(-dim // 8) if precision.endswith("binary") else dim,
            "dtype": {"binary": "int8", "ubinary": "uint8"}.get(precision, precision),
            "version": sparse_mixer.__version__,
            "ranges": None if ranges is None else ranges.tolist(),
        }

    def in_one(self, path: str, ending: str) -> tuple[int, int]:
        """Write the target in one piece; how many rows it has, twice."""
        about = self._with_ranges()
        with replacing(path) as temporary:
            rows = self._write(self._source.rows(), temporary, ending, about, None, 0)
            remove(path)
            write_about(path, temporary, {**about, "rows": rows})
        return rows, rows

    def in_parts(self, path: str, ending: str, overwrite: bool) -> tuple[int, int]:
        """Write the parts that are not there yet, and join them; how many rows the target has, and how many are new."""
        size = self.part_rows or 1
        folder = f"{path}.parts"
        os.makedirs(folder, exist_ok=True)
        with _locked(folder):
            about = self._resumed(folder, overwrite)
            parts = _parts(folder, ending)
            there = done = sum(rows for _, rows in parts)
            stream = _Stream(self._source.rows(done)) if not parts or parts[-1][1] == size else None
            while stream is not None and (not parts or parts[-1][1] == size):
                schema = part_schema(parts[0][0]) if parts and ending == ".parquet" else None
                new = os.path.join(folder, f"new{ending}")
                with replacing(new) as temporary:
                    rows = self._write(stream.take(size), temporary, ending, about, schema, done)
                # The name says how many rows it has. After a crash just before this the part is written again.
                part = os.path.join(folder, f"{len(parts):06}-{rows}{ending}")
                os.replace(new, part)
                parts.append((part, rows))
                done += rows
            with replacing(path) as temporary:
                join([part for part, _ in parts], temporary, ending, about)
                remove(path)
                write_about(path, temporary, {**about, "rows": done})
            shutil.rmtree(folder)
        return done, done - there

    def _resumed(self, folder: str, overwrite: bool) -> dict[str, Any]:
        """What the parts in a folder say of themselves, and are to say; with `overwrite` others are removed."""
        file = os.path.join(folder, "job.json")
        if os.path.exists(file):
            with open(file, "rb") as stream:
                known = mapping_of(stream.read(), file)
            stored = known.get("about")
            if not isinstance(stored, dict) or "digest" not in stored:
                raise ValueError(f"{file}: damaged; remove its folder to begin again")
            same = known.get("part_rows") == self.part_rows and stored["digest"] == self.about["digest"]
            if same:
                return dict(stored)
            if not overwrite:
                self._refuse(folder, known)
            for name in os.listdir(folder):
                if name != "lock":
                    os.remove(os.path.join(folder, name))
        about = self._with_ranges()
        with replacing(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            json.dump({"part_rows": self.part_rows, "about": about}, stream)
        return about

    def _refuse(self, folder: str, known: Mapping[str, Any]) -> None:
        if known.get("part_rows") != self.part_rows:
            got = f"{known.get('part_rows')} there, {self.part_rows} here"
            raise ValueError(f"part_rows: {folder} has others ({got}); use the same, or remove the folder")
        rows_if_same(folder, known["about"], self.about)

    def _with_ranges(self) -> dict[str, Any]:
        """`about`; the ranges of 8-bit numbers are those of the first texts, if none are given."""
        if self._precision in ("int8", "uint8") and self._ranges is None:
            window = next(windows(self._source.rows(), _ROWS, _CHARACTERS), [])
            vectors = self._vectors(window, 0)
            least = vectors.min(axis=0, initial=np.inf) if len(vectors) else np.zeros(self._dim)
            largest = vectors.max(axis=0, initial=-np.inf) if len(vectors) else np.zeros(self._dim)
            return {**self.about, "ranges": [least.tolist(), largest.tolist()]}
        return self.about

    def _write(
        self, rows: Iterator[Rows], path: str, ending: str, about: Mapping[str, Any], schema: Any, first: int
    ) -> int:
        """Write a file of vectors; how many."""
        with contextlib.closing(Writer(path, ending, self._source.keep, about, schema)) as writer:
            for window in windows(rows, _ROWS, _CHARACTERS):
                vectors: npt.NDArray[Any] = self._vectors(window, first + writer.rows, self._progress)
                if self._precision != "float32":
                    vectors = quantize_embeddings(vectors, self._precision, about["ranges"])
                writer.write(window, vectors)
        return writer.rows

    def _vectors(self, window: list[Rows], first: int, progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """Encode a window, whose first row has this number."""
        texts = [text for rows in window for text in rows.texts]
        before, after = (window[0].shares[0], window[-1].shares[1]) if window else (0.0, 0.0)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(first + done, before + (after - before) * done / len(texts))

        tokens = self._model.to_tokens(texts, None, self._front, on_truncation=self._on_truncation, first=first)
        return self._model.encode_tokens(
            tokens, self._rows, normalize_embeddings=self._unit, truncate_dim=self._dim, advance=advance
        )


class _Stream:
    """Rows that are taken by number."""

    def __init__(self, rows: Iterator[Rows]) -> None:
        self._rows, self._left = rows, Rows([], [])

    def take(self, count: int) -> Iterator[Rows]:
        """The next `count` rows, if there are as many."""
        while count:
            if not self._left.texts:
                following = next(self._rows, None)
                if following is None:
                    return
                self._left = following
            taken, self._left = self._left.cut(0, count), self._left.cut(count, len(self._left.texts))
            count -= len(taken.texts)
            yield taken


def rows_if_same(path: str, known: Mapping[str, Any] | None, about: Mapping[str, Any]) -> int:
    """How many rows a file has that was made of what `about` says.

    Raises:
        ValueError: It was made of something else; the message says what differs.
    """
    if known is None:
        raise ValueError(
            f"target: {path} is there and does not say what it was made of; remove it, or pass overwrite=True"
        )
    if known["digest"] == about["digest"]:
        return int(known["rows"])
    differences = [
        f"{name}: {_shown(known.get(group, {}).get(name))} there, {_shown(value)} here"
        for group in ("model", "settings", "source")
        for name, value in about[group].items()
        if name != "name" and known.get(group, {}).get(name) != value
    ]
    raise ValueError(
        f"target: {path} was made by another model, with other settings or of another source "
        f"({'; '.join(differences)}); remove it, choose another one, or pass overwrite=True"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _parts(folder: str, ending: str) -> list[tuple[str, int]]:
    """The parts that are whole, in their order, and how many rows each has."""
    named = sorted(name for name in os.listdir(folder) if name.endswith(ending) and name[:6].isdigit())
    return [(os.path.join(folder, name), int(name[7:].removesuffix(ending))) for name in named]


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """No other process writes there; the lock ends with the process, however that ends."""
    with open(os.path.join(folder, "lock"), "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"target: another process is writing to {folder}") from None
        yield
