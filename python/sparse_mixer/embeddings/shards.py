"""A file of texts to a file of vectors: the unit of work of large jobs, on one machine or on many."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_bool, as_positive, as_text
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.embeddings.quantize import PRECISIONS
from sparse_mixer.embeddings.shard_job import Job, Progress, rows_if_same
from sparse_mixer.embeddings.similarity import as_matrix
from sparse_mixer.embeddings.sources import Source
from sparse_mixer.embeddings.targets import EMBEDDING, about_file, target_ending
from sparse_mixer.text.encoder import DOCUMENT_PROMPTS, TextEncoder


class Shard(NamedTuple):
    """What became of a file.

    Attributes:
        target: The file of vectors.
        rows: How many it has.
        encoded: How many of them this call encoded; the others were there.
        seconds: How long the call took.
    """

    target: str
    rows: int
    encoded: int
    seconds: float


def embed_shard(
    source: PathLike,
    target: PathLike,
    model: TextEncoder | PathLike,
    *,
    column: str = "text",
    keep: Sequence[str] | None = None,
    batch_size: int = 32,
    prompt_name: str | None = None,
    prompt: str | None = None,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
    precision: str = "float32",
    ranges: npt.ArrayLike | None = None,
    on_truncation: str = "ignore",
    part_rows: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Shard:
    """Encode the texts of one file, and write their vectors to another, in the same order and in bounded memory.

    The target appears whole or not at all. If it is there already, made of the same file by the same model with the
    same settings, nothing is done; if by others, it is refused. So a job over many files, which may be killed at any
    time, is a loop that runs again until it gets through.

    Args:
        source: A ``.parquet``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.txt`` file (a text per line); all but the first
            also with ``.gz`` behind. UTF-8. It counts as the same if its size and its first and last 64 KiB are.
        target: A ``.parquet`` file, with the vectors as a column ``embedding`` of fixed-size lists; a ``.npy`` file,
            with an array [N, D] and nothing else; or a ``.jsonl`` file. The last two have a file ``.json`` beside them
            that says what they were made of.
        model: A `TextEncoder`, or the folder of one.
        column: The column that has the texts.
        keep: Columns that parquet and JSON lines get beside the vectors; None for the texts, ``["*"]`` for all.
        batch_size: Texts per pass through the encoder.
        prompt_name: As for `TextEncoder.encode_document`, like the next.
        prompt: A text to put in front of each.
        normalize_embeddings: Whether to divide vectors by their lengths.
        truncate_dim: How many numbers of each vector to keep.
        precision: Type of the numbers; see `quantize_embeddings`.
        ranges: Least and largest value of each column, [2, D], for 8-bit numbers; None takes those of the first
            texts (up to 4,096). Several files that are searched together should have the same.
        on_truncation: What happens where a text has too many tokens, beside cutting it: ``"ignore"``, ``"warn"`` or
            ``"error"``.
        part_rows: Rows per part. Parts lie in a folder ``target.parts`` until all are there; a call after a crash goes
            on behind the last one. None for no parts.
        overwrite: Whether to replace a target that is there.
        progress: Called with the number of rows that are done, those of earlier calls included, and with the share of
            the source that is.

    Returns:
        What was done.

    Raises:
        ValueError: A target that was made of something else, by another model or with other settings; a source
            without such a column, or a row without a text. The message names it.
        BlockingIOError: Another process is writing parts of this target.
        ImportError: `pyarrow` is missing (extra ``parquet``), or `tokenizers` (extra ``text``).
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Interrupted; parts stay.
    """
    begin = time.monotonic()
    path = file_name(target, "target")
    ending = target_ending(path)
    model = model if isinstance(model, TextEncoder) else TextEncoder(model)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}")
    if prompt is None and prompt_name is None:
        prompt_name = next((name for name in DOCUMENT_PROMPTS if name in model.prompts), None)
    content = Source(file_name(source, "source"), as_text("column", column), () if ending == ".npy" else keep)
    if EMBEDDING in content.keep:
        raise ValueError(f"keep: got {EMBEDDING!r}, which is the column of the vectors")
    dim = model.dimension(truncate_dim)
    job = Job(
        model=model,
        source=content,
        front=model.prompt_text(prompt_name, prompt),
        batch_size=as_positive("batch_size", batch_size),
        unit=as_bool("normalize_embeddings", normalize_embeddings),
        dim=dim,
        precision=precision,
        on_truncation=on_truncation,
        part_rows=None if part_rows is None else as_positive("part_rows", part_rows),
        progress=progress,
        ranges=_ranges(ranges, precision, dim),
    )
    if os.path.exists(path) and not overwrite:
        return Shard(path, rows_if_same(path, about_file(path), job.about), 0, time.monotonic() - begin)
    rows, encoded = job.in_one(path, ending) if job.part_rows is None else job.in_parts(path, ending, overwrite)
    return Shard(path, rows, encoded, time.monotonic() - begin)


def _ranges(ranges: npt.ArrayLike | None, precision: str, dim: int) -> npt.NDArray[np.float32] | None:
    if ranges is None:
        return None
    if precision not in ("int8", "uint8"):
        raise ValueError(f"ranges: given, but precision is {precision!r}; they are for 'int8' and 'uint8'")
    limits = as_matrix("ranges", ranges)
    if limits.shape != (2, dim):
        raise ValueError(f"ranges: got shape {list(limits.shape)}, expected [2, {dim}]")
    return limits
