"""Where converted models are kept, and processes that make them."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import tempfile
from typing import Any


def cache_directory() -> pathlib.Path:
    """Return the folder that holds converted models: `$SPARSE_MIXER_BENCH_CACHE` or one under the temp folder."""
    default = pathlib.Path(tempfile.gettempdir()) / "sparse-mixer-benchmarks"
    folder = pathlib.Path(os.environ.get("SPARSE_MIXER_BENCH_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_apart(target: Any, *arguments: Any) -> None:
    """Run `target` in a process of its own, so that its memory and thread pools are gone afterwards."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{target.__module__}.{target.__name__} failed with exit code {process.exitcode}")
