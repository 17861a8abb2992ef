"""Importing is quick, quiet and idle, and the package is small."""

from __future__ import annotations

import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import sparse_mixer

MEGABYTE = 10**6
WHEELS = list((Path(__file__).parents[1] / "dist").glob("sparse_mixer-*.whl"))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a fresh interpreter, away from the working tree."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60, cwd="/")


def test_import_is_quick() -> None:
    """At most 0.10 s on top of numpy."""
    program = """
import time, numpy
start = time.perf_counter()
import sparse_mixer
print(time.perf_counter() - start)
"""
    python("-c", program)  # fills the file cache
    seconds = statistics.median(float(python("-c", program).stdout) for _ in range(5))
    assert seconds <= 0.10


def test_import_is_silent() -> None:
    result = python("-W", "error", "-X", "dev", "-c", "import sparse_mixer")
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_import_starts_no_thread() -> None:
    program = """
import os, numpy
before = len(os.listdir("/proc/self/task"))
import sparse_mixer
sparse_mixer.SparseMixer(10, hidden_size=4, num_layers=1, num_attention_heads=1, inner_dim=4, max_sequence_length=4)
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert python("-c", program).stdout.strip() == "0"


def test_first_call_looks_for_nothing_in_numpy() -> None:
    """That would run Python code, in which a signal can arrive."""
    python(
        "-c",
        "import numpy as np, numpy.lib, sparse_mixer\n"
        "numpy.lib.NumpyVersion = None\n"
        "encoder = sparse_mixer.SparseMixer(7, hidden_size=8, num_layers=1, num_attention_heads=1)\n"
        "ids = np.zeros((1, 512), np.int32)\n"
        "encoder({'input_word_ids': ids, 'input_mask': ids + 1, 'input_type_ids': ids})\n",
    )


def test_import_needs_only_numpy() -> None:
    """No optional dependency is imported before it is needed, TensorFlow least of all."""
    program = """
import sys, numpy
before = set(sys.modules)
import sparse_mixer
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names) - {"sparse_mixer", "numpy"}))
"""
    assert python("-c", program).stdout.split() == []


def test_numpy_is_the_only_dependency() -> None:
    required = [line for line in metadata.requires("sparse_mixer") or [] if "extra ==" not in line]
    assert len(required) == 1
    assert required[0].startswith("numpy")


def test_package_is_small() -> None:
    folder = Path(sparse_mixer.__file__).parent
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 24 * MEGABYTE
    assert folder / "py.typed" in files


@pytest.mark.skipif(not WHEELS, reason="no wheel in dist/; `make build` puts one there")
def test_wheel_is_small() -> None:
    (wheel,) = WHEELS
    assert wheel.stat().st_size <= 8 * MEGABYTE
    assert "-abi3-" in wheel.name
