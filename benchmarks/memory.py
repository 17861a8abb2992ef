"""Memory of the Base model in each storage type: weights, converting them, and calls above them."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

from tqdm.auto import tqdm

from benchmarks import report

MEGABYTE = 1e6
DTYPES = ("float32", "bfloat16", "float16", "int8")

# Run in a fresh interpreter, with storage type, batch and threads.
_PROGRAM = """
import ctypes, gc, json, sys
from benchmarks.workload import Workload
import sparse_mixer

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))

def settle():
    gc.collect()
    sparse_mixer.release_scratch()
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    return memory("VmRSS")

dtype, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
workload = Workload()
empty = settle()
encoder = sparse_mixer.SparseMixer(**workload.constructor_arguments(), num_threads=threads, seed=0)
full = encoder.weight_bytes
settle()
if dtype != "float32":
    encoder = encoder.astype(dtype)
converting = memory("VmHWM")
built = settle()
inputs = workload.inputs(batch)
peaks = {}
for name, outputs in {"pooled": ("pooled_output",), "both": ("sequence_output", "pooled_output")}.items():
    for _ in range(3):
        encoder(inputs, outputs=outputs)
    peaks[name] = memory("VmHWM") - built
    settle()
print(json.dumps(dict(weights=encoder.weight_bytes, ratio=encoder.weight_bytes / full, held=built - empty,
                      converting=converting - empty, estimate=encoder.memory_estimate(batch, outputs=("pooled_output",))
                      - encoder.weight_bytes, **peaks)))
"""


def run(batch: int, threads: int, folder: pathlib.Path | None) -> str:
    """Measure every storage type in a process of its own and return the printed table."""
    results = {}
    for dtype in tqdm(DTYPES, desc="memory", leave=False):
        command = [sys.executable, "-c", _PROGRAM, dtype, str(batch), str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[dtype] = json.loads(done.stdout.splitlines()[-1])
    header = [
        "dtype",
        "weights, MB",
        "of float32",
        "held, MB",
        "peak converting, MB",
        f"call above weights, batch {batch}: pooled output, MB",
        "estimate, MB",
        "both outputs, MB",
    ]
    lines = [
        [
            dtype,
            f"{r['weights'] / MEGABYTE:.0f}",
            f"{r['ratio']:.3f}",
            *(f"{r[key] / MEGABYTE:.0f}" for key in ("held", "converting", "pooled", "estimate", "both")),
        ]
        for dtype, r in results.items()
    ]
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "memory", {"batch": batch, "threads": threads, "dtypes": results}, table)
    return table
