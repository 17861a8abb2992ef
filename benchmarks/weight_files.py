"""Saving and loading the Base model beside copying its file, and the memory that loading takes."""

from __future__ import annotations

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import sparse_mixer
from tqdm.auto import tqdm

from benchmarks import report

MEBIBYTE = 1 << 20

# Run in a fresh interpreter: the most memory that loading the file took, everything included.
_LOAD = """
import sys, sparse_mixer
encoder = sparse_mixer.SparseMixer.load(sys.argv[1], num_threads=int(sys.argv[2]))
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


def _copy(source: pathlib.Path, target: pathlib.Path, *, durable: bool) -> None:
    """Copy as a program does that takes the fastest way; `durable` waits for the disk, as saving does."""
    shutil.copyfile(source, target)
    if durable:
        for path in (target, target.parent):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def _peak_of_loading(path: pathlib.Path, threads: int) -> int:
    command = [sys.executable, "-c", _LOAD, str(path), str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - start
    del result  # letting go of the model is not part of loading it
    return seconds


def run(threads: int, rounds: int, where: pathlib.Path | None, folder: pathlib.Path | None) -> str:
    """Measure and return the printed table.

    Args:
        threads: threads of the encoder.
        rounds: times that everything is done in turn; medians and median ratios are shown.
        where: folder on the disk to be measured; None for the system's temporary folder.
        folder: where `weight_files.json` and `weight_files.md` go, or None.
    """
    with tempfile.TemporaryDirectory(dir=where) as name:
        source, target = pathlib.Path(name, "base.safetensors"), pathlib.Path(name, "target.safetensors")
        encoder = sparse_mixer.SparseMixer(32000, seed=0, num_threads=threads)
        encoder.save(source)
        file_bytes = source.stat().st_size
        actions: dict[str, Callable[[], object]] = {
            "copy": lambda: _copy(source, target, durable=False),
            "load": lambda: sparse_mixer.SparseMixer.load(source, num_threads=threads),
            "copy, fsync": lambda: _copy(source, target, durable=True),
            "save": lambda: encoder.save(target),
        }
        times: dict[str, list[float]] = {action: [] for action in actions}
        # The first round fills caches and does not count.
        for counted in tqdm([False] + [True] * rounds, desc="weight files", leave=False):
            for action, work in actions.items():
                target.unlink(missing_ok=True)
                os.sync()
                seconds = _seconds(work)
                if counted:
                    times[action].append(seconds)
        peak = _peak_of_loading(source, threads)
    results = {"file_bytes": file_bytes, "seconds": times, "peak_bytes": peak, "threads": threads}
    rows = []
    for action, base in (("load", "copy"), ("save", "copy, fsync")):
        ratio = statistics.median(a / b for a, b in zip(times[action], times[base], strict=True))
        rows.append(
            [
                action,
                f"{statistics.median(times[action]):.2f}",
                f"{statistics.median(times[base]):.2f}",
                f"{ratio:.2f}",
            ]
        )
    table = report.markdown_table(["", "s", f"copy of {file_bytes / 1e6:.0f} MB, s", "ratio"], rows)
    table += f"\n\npeak memory of a process that loads: {peak / MEBIBYTE:.0f} MiB, {peak / file_bytes:.2f} x the file"
    if folder is not None:
        report.save(folder, "weight_files", results, table)
    return table
