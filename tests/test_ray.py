"""`sparse_mixer.ray` on a local cluster: a process, a node and the caller are killed, and each row is there once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
from sparse_mixer import TextEncoder
from text_models import LETTERS, small_model

pytest.importorskip("ray.data")
pq = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.slow

FILES, ROWS = 12, 300

# Everything runs in processes of its own: Ray starts many, and warns of this and that.
PRELUDE = """
import json, logging, os, signal, sys, time, warnings
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import psutil, ray
from sparse_mixer import ray as cluster
sources, target, model = sys.argv[1:4]
def start(nodes):
    from ray.cluster_utils import Cluster
    c = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False,
                                                      "object_store_memory": 10**8})
    added = [c.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(nodes)]
    ray.init(address=c.address, log_to_driver=False, logging_level="ERROR")
    return c, added
def workers():
    return [p for p in below() if "".join(p.cmdline()).startswith("ray::_Worker")]
def below():
    return psutil.Process().children(recursive=True)
"""


def run(program: str, *arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + program, *map(str, arguments)]
    environment = os.environ | {"RAY_DEDUP_LOGS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_model(folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    for number in range(FILES):
        texts = [" ".join(random.choice(list(LETTERS), random.integers(1, 12))) for _ in range(ROWS)]
        lines = [json.dumps({"id": number * ROWS + row, "text": text}) for row, text in enumerate(texts)]
        (folder / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def check_rows(target: Path, model: Path) -> None:
    """Each row once, with the bits of one process."""
    encoder = TextEncoder(model)
    files = sorted(target.glob("*.parquet"))
    assert [file.stem for file in files] == [f"{number:02}" for number in range(FILES)]
    for number, file in enumerate(files):
        table = pq.read_table(file)
        assert table["id"].to_pylist() == list(range(number * ROWS, (number + 1) * ROWS))
        vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(ROWS, -1)
        np.testing.assert_array_equal(vectors, encoder.encode(table["text"].to_pylist()))
    assert {path.suffix for path in target.iterdir()} == {".parquet"}


def test_a_process_and_a_node_are_killed(sources: Path, model: Path, tmp_path: Path) -> None:
    done = run(
        """
c, nodes = start(2)
killed = []
def progress(files, total, rows):
    if files >= 3 and not killed:
        killed.append("process")
        workers()[0].kill()
    elif files >= 6 and len(killed) == 1:
        killed.append("node")
        c.remove_node(nodes.pop(), allow_graceful=False)
summary = cluster.embed(sources, target, model, keep=["id", "text"], progress=progress)
print(json.dumps([killed, *summary]))
begin = time.monotonic()
again = cluster.embed(sources, target, model, keep=["id", "text"])
print(json.dumps([*again[:3], time.monotonic() - begin]))
""",
        sources, tmp_path / "out", model,
    )  # fmt: skip
    first, second = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    killed, files, rows, encoded, _, failed = first
    assert killed == ["process", "node"]
    assert (files, rows, failed) == (FILES, FILES * ROWS, {})
    assert encoded <= rows
    check_rows(tmp_path / "out", model)
    assert second[:3] == [FILES, FILES * ROWS, 0]
    assert second[3] < 20


def test_the_caller_is_killed(sources: Path, model: Path, tmp_path: Path) -> None:
    program = """
c, nodes = start(1)
def progress(files, total, rows):
    if files >= 3 and sys.argv[4:]:
        print(json.dumps([p.pid for p in below()]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
summary = cluster.embed(sources, target, model, keep=["id", "text"], progress=progress)
print(json.dumps(summary[:3]))
"""
    target = tmp_path / "out"
    done = run(program, sources, target, model, "kill", check=False)
    assert done.returncode == -signal.SIGKILL
    for process in json.loads(done.stdout.splitlines()[-1]):
        # Ray ends most of them itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    there = {path: path.stat().st_mtime_ns for path in target.glob("*.parquet")}
    assert 3 <= len(there) < FILES
    files, rows, encoded = json.loads(run(program, sources, target, model).stdout.splitlines()[-1])
    assert (files, rows) == (FILES, FILES * ROWS)
    assert encoded <= (FILES - len(there)) * ROWS
    assert all(path.stat().st_mtime_ns == then for path, then in there.items())
    check_rows(target, model)


@pytest.fixture(scope="module")
def on_one_node(sources: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    """What calls on one node of three CPUs give; starting Ray takes longer than all of them."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "in").mkdir()
    (folder / "in" / "00.jsonl").write_bytes((sources / "00.jsonl").read_bytes())
    (folder / "in" / "bad.jsonl").write_text('{"text": 3}\n')
    done = run(
        """
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
results = [cluster.embed([sources + "/00.jsonl", sources + "/bad.jsonl"], target + "/npy", model, format="npy")]
def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except (ValueError, RuntimeError) as error:
        results.append(str(error))
for wrong in ({"num_cpus": 8}, {"format": "h5"}, {"num_cpus": 0}):
    refused(cluster.embed, sources, target + "/npy", model, **wrong)
ray.data.DataContext.get_current().enable_progress_bars = False
dataset = ray.data.read_json(sources + "/00.jsonl")
refused(cluster.embed_dataset, dataset, model, concurrency=3, num_cpus=1)
cluster.embed_dataset(dataset, model, num_cpus=1, rows=64, normalize_embeddings=True).write_parquet(target + "/data")
print(json.dumps(results))
""",
        folder / "in", folder, model,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_files_that_cannot_be_encoded(on_one_node: tuple[list[Any], Path]) -> None:
    (summary, cpus, form, zero, _), folder = on_one_node
    files, rows, _, _, failed = summary
    assert (files, rows) == (1, ROWS)
    (reason,) = failed.values()
    assert "row 0: text: got 3 (int), expected a text" in reason
    assert [path.name for path in (folder / "npy").glob("*.npy")] == ["00.npy"]
    assert cpus == "num_cpus: no node has 8; they have [3]"
    assert "format: got 'h5'" in form
    assert "num_cpus: expected at least 1, got 0" in zero


def test_data_sets(on_one_node: tuple[list[Any], Path], sources: Path, model: Path) -> None:
    (*_, starved), folder = on_one_node
    assert "3 x 1 of 3 CPUs leave none to the tasks that read" in starved
    table = pq.read_table(folder / "data").sort_by("id")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(ROWS, -1)
    texts = [json.loads(line)["text"] for line in (sources / "00.jsonl").read_text().splitlines()]
    assert table["text"].to_pylist() == texts
    np.testing.assert_array_equal(vectors, TextEncoder(model).encode(texts, normalize_embeddings=True))
