"""The recipe of docs/embed.md for Dask: a worker is killed, and each row is there once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")
from sparse_mixer import TextEncoder
from text_models import LETTERS, small_model

pytest.importorskip("distributed")

pytestmark = pytest.mark.slow

DOCS = (Path(__file__).parents[1] / "docs" / "embed.md").read_text()
FILES, ROWS = 8, 200


def recipe(heading: str) -> str:
    """The code below a heading."""
    found = re.search(rf"### {heading}\n.*?~~~python\n(.*?)~~~", DOCS, re.DOTALL)
    assert found
    return found[1]


def run(program: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", program]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_dask(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    (tmp_path / "vectors").mkdir()
    random = np.random.default_rng(0)
    texts = [
        [" ".join(random.choice(list(LETTERS), random.integers(1, 12))) for _ in range(ROWS)] for _ in range(FILES)
    ]
    for number, lines in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text("\n".join(lines) + "\n")
    model, sources, targets = tmp_path / "model" / "model.safetensors", tmp_path / "texts", tmp_path / "vectors"
    code = recipe("Dask").replace("/models/all-MiniLM-L6-v2", str(model)).replace("/data/vectors", str(targets))
    code = code.replace("/data/texts/*.parquet", f"{sources}/*.txt").replace(".parquet", ".npy")
    begin, end = code.split('client = Client(scheduler_file="scheduler.json")\n')
    program = f"""
import json, os, signal, threading, time
{begin}
if __name__ == "__main__":
    from distributed import LocalCluster
    cluster = LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)
    def kill():
        while not os.listdir({str(targets)!r}): time.sleep(0.01)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
    killer = threading.Thread(target=kill)
    killer.start()
{"".join(f"    {line}" for line in end.splitlines(keepends=True))}
    killer.join()
    print(json.dumps(rows))
    client.close()
    cluster.close()
"""
    assert json.loads(run(program)[-1]) == FILES * ROWS
    encoder = TextEncoder(model)
    for number, lines in enumerate(texts):
        np.testing.assert_array_equal(np.load(targets / f"{number}.npy"), encoder.encode(lines))
