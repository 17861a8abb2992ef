"""Many texts through ``sparse-mixer embed``: bounded memory, killed once and resumed, each row once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
from text_models import LETTERS, small_model

pq = pytest.importorskip("pyarrow.parquet")

MEGABYTE = 1 << 20
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")

# Memory before the command begins: the libraries are there, and the model has run once.
PROGRAM = """
import sys
import pyarrow.parquet
from sparse_mixer import TextEncoder, cli
model = TextEncoder(sys.argv[1], num_threads=1)
model.encode(["a b c"] * 32)
del model
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmRSS:")).split()[1], flush=True)
code = cli.main(["embed", *sys.argv[1:], "--num-threads=1", "--quiet"])
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM:")).split()[1], flush=True)
sys.exit(code)
"""


def high_water(process: int) -> int:
    with open(f"/proc/{process}/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024


def test_each_row_once_in_bounded_memory(scaled: Any, report: Any, tmp_path: Path) -> None:
    rows = scaled(20_000, 1_000_000)
    model = small_model(tmp_path / "model")
    source, target = tmp_path / "texts.jsonl", tmp_path / "vectors.parquet"
    random = np.random.default_rng(0)
    with open(source, "w") as file:
        for number in range(rows):
            text = " ".join(random.choice(list(LETTERS), random.integers(1, 12)))
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    options = ["--keep=id", "--keep=text", f"--part-rows={rows // 10}"]
    weights = str(tmp_path / "model" / "model.safetensors")
    command = [sys.executable, "-c", PROGRAM, weights, str(source), str(target), *options]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    start = int(process.stdout.readline()) * 1024
    while len(list(Path(f"{target}.parts").glob("0*"))) < 4:
        assert process.poll() is None, "it ended"
        time.sleep(0.01)
    first = high_water(process.pid) - start
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    start, *said, highest = done.stdout.splitlines()
    second = (int(highest) - int(start)) * 1024
    seconds = time.monotonic() - begin
    assert f"{rows:,} vectors, " in said[-1]
    assert f"{rows:,} new" not in said[-1]
    report(rows=rows, seconds=f"{seconds:.0f}", growth=f"{max(first, second) / MEGABYTE:.0f} MB", second_run=said[-1])
    assert max(first, second) <= 200 * MEGABYTE

    with pq.ParquetFile(target) as file:
        seen = np.concatenate([batch.column("id").to_numpy() for batch in file.iter_batches(columns=["id"])])
        np.testing.assert_array_equal(seen, np.arange(rows))
        # All vectors of a small file, and each hundredth batch of a large one, as one process computes them.
        for number, batch in enumerate(file.iter_batches(4096)):
            if number % scaled(1, 100) == 0:
                vectors = batch.column("embedding").flatten().to_numpy().reshape(len(batch), -1)
                np.testing.assert_array_equal(vectors, model.encode(batch.column("text").to_pylist()))
    assert sorted(os.listdir(tmp_path)) == ["model", "texts.jsonl", "vectors.parquet"]
