"""Packed files of the Base model: loading, the first answer of a fresh process, and memory of several processes."""

from __future__ import annotations

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import sparse_mixer
from tqdm.auto import tqdm

from benchmarks import report

MEBIBYTE = 1 << 20
DTYPES = ("float32", "bfloat16", "int8")

# Run in a fresh interpreter: load, one answer of batch 1; then says so, and how much memory it has when asked.
_ANSWER = """
import sys, numpy as np, sparse_mixer
encoder = sparse_mixer.SparseMixer.load(sys.argv[1], num_threads=int(sys.argv[2]))
zeros = np.zeros((1, 512), np.int32)
inputs = {"input_word_ids": zeros, "input_mask": zeros + 1, "input_type_ids": zeros}
encoder(inputs, outputs=("sequence_output", "pooled_output"))
print("answered", flush=True)
sys.stdin.readline()
def proportional(text):
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
whole = proportional(open("/proc/self/smaps_rollup").read())
pieces = open("/proc/self/smaps").read().split("VmFlags:")
print(whole, sum(proportional(piece) for piece in pieces if sys.argv[1] in piece), flush=True)
sys.stdin.readline()
"""


def _load_seconds(path: pathlib.Path, threads: int) -> float:
    start = time.perf_counter()
    encoder = sparse_mixer.SparseMixer.load(path, num_threads=threads)
    seconds = time.perf_counter() - start
    del encoder  # letting go of the model is not part of loading it
    return seconds


class _Process:
    """A fresh interpreter that has answered; `seconds` from its start to the answer."""

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-c", _ANSWER, str(path), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()
        self.seconds = time.perf_counter() - start

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def _say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("on\n")
        self.process.stdin.flush()

    def memory(self) -> tuple[int, int]:
        """Proportional bytes of the process, and of the file in it: a page that n processes have counts 1/n."""
        self._say()
        whole, mapped = self._read().split()
        return int(whole), int(mapped)

    def end(self) -> None:
        """Let it go."""
        self.process.communicate("on\non\n")


def run(processes: int, threads: int, rounds: int, where: pathlib.Path | None, folder: pathlib.Path | None) -> str:
    """Measure and return the printed table.

    Args:
        processes: processes whose memory is measured together.
        threads: threads of the encoder.
        rounds: times that everything is done in turn; medians are shown.
        where: folder on the disk to be measured; None for the system's temporary folder.
        folder: where `packed_files.json` and `packed_files.md` go, or None.
    """
    rows, results = [], []
    with tempfile.TemporaryDirectory(dir=where) as name:
        plain = pathlib.Path(name, "plain.safetensors")
        encoder = sparse_mixer.SparseMixer(32000, seed=0, num_threads=threads)
        paths = {dtype: pathlib.Path(name, dtype) for dtype in DTYPES}
        encoder.save(plain)
        for dtype, path in paths.items():
            encoder.astype(dtype).save(path, packed=True)
        del encoder
        for label, path in tqdm({"plain float32": plain, **paths}.items(), desc="packed files", leave=False):
            # The first of each kind fills caches and does not count.
            loads = [_load_seconds(path, threads) for _ in range(rounds + 1)][1:]
            answers = []
            for _ in range(rounds + 1):
                process = _Process(path, threads)
                answers.append(process.seconds)
                process.end()
            together = [_Process(path, threads) for _ in range(processes)]
            memory = [process.memory() for process in together]
            for process in together:
                process.end()
            result = {
                "file": label,
                "file_bytes": path.stat().st_size,
                "load": loads,
                "first_answer": answers[1:],
                "pss": [whole for whole, _ in memory],
                "pss_of_file": [mapped for _, mapped in memory],
            }
            results.append(result)
            size = path.stat().st_size
            total, mapped = (sum(memory[i][kind] for i in range(processes)) for kind in (0, 1))
            rows.append(
                [
                    label,
                    f"{size / MEBIBYTE:.0f}",
                    f"{statistics.median(loads) * 1000:.0f}",
                    f"{statistics.median(answers[1:]):.2f}",
                    f"{total / MEBIBYTE:.0f}",
                    f"{mapped / size:.2f}",
                ]
            )
    header = ["file", "MiB", "load, ms", "first answer, s", f"{processes} processes, MiB", "their weights / file"]
    table = report.markdown_table(header, rows)
    if folder is not None:
        report.save(folder, "packed_files", {"processes": processes, "threads": threads, "files": results}, table)
    return table
