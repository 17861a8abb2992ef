"""`python -m benchmarks ray`: a run with few texts, its arithmetic, and that other vectors are noticed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")
from benchmarks import ray_files

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[1]


def test_rates_and_ratios_are_those_of_the_same_files() -> None:
    turns = ray_files.Turns([1.0, 3.0, 2.0], [1.25, 3.0, 2.0], [1.0, 1.0], (4.0, 5.0))
    text = ray_files.table(turns, 100, 2, "float32", 400)
    rates = [float(line.split("|")[2]) for line in text.splitlines()[2:5]]
    assert rates == [50.0, 48.0, 100.0]
    assert "Ray / one process: 0.960; file by file 1.000 (median), 0.800 to 1.000." in text
    assert "no Ray on the machine: 0.480." in text


def test_one_other_bit_is_noticed(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32)
    files = [tmp_path / name for name in ("one.parquet", "other.parquet")]
    for file in files:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors), 4)
        pq.write_table(pa.table({"embedding": flat}), file)
        vectors = vectors.copy()
        vectors[7] = np.nextafter(vectors[7], np.float32(9))
    assert ray_files.same_vectors(files[0], files[0]) == 3
    with pytest.raises(RuntimeError, match=r"one\.parquet: Ray's vectors are not those of one process"):
        ray_files.same_vectors(*files)


@pytest.mark.slow
def test_a_run() -> None:
    pytest.importorskip("ray")
    pytest.importorskip("tokenizers")
    options = ["--minutes", "0", "--rows", "16", "--words", "3", "8"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--threads", "1", "ray", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    found = re.search(r"Ray / one process: ([\d.]+);", done.stdout)
    assert found
    assert 0 < float(found[1]) < 10
    # Of four files, each with 16 texts.
    assert "64 vectors have the same bits" in done.stdout
    assert [line.split("|")[3].strip() for line in done.stdout.splitlines()[2:5]] == ["3", "3", "6"]
