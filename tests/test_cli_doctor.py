"""`sparse-mixer doctor`, shell completion, and the ways to start the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import sparse_mixer
from sparse_mixer import cli
from sparse_mixer.cli import completion, doctor

ROOT = Path(__file__).parents[1]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == cli.EXIT_OK
    return capsys.readouterr().out


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparse_mixer", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"sparse-mixer {sparse_mixer.__version__}\n"


def test_doctor_says_what_a_report_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = json.loads(printed(capsys, "doctor", "--json"))
    assert found["numpy"] == np.__version__
    assert found["env.OMP_NUM_THREADS"] == "3"
    assert found["memory"].endswith("GiB")
    for fact in ("sparse_mixer", "python", "platform", "libc", "cpu.isa", "cpu.available", "threads", "installed in"):
        assert found[fact], fact
    assert f"numpy                  {np.__version__}\n" in printed(capsys, "doctor")


def test_doctor_knows_all_extras() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"all", "test", "reference"}
    for extra, name in doctor.EXTRAS.items():
        assert extras[extra][0].startswith(name), extra


def complete_in_bash(words: list[str], tmp_path: Path) -> set[str]:
    """What bash offers for the last of the words."""
    (tmp_path / "script").write_text(completion.script(cli.command._parser(), "bash"))
    program = f"source ./script; COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
    program += "_sparse_mixer; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["in"], {"inspect"}),
        (["d"], {"doctor"}),
        (["--v"], {"--version"}),
        (["bench", "--th"], {"--threads"}),
        (["bench", "--preset", "bert"], {"bert_base"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["inspect", "some"], set()),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], tmp_path: Path) -> None:
    assert complete_in_bash(["sparse-mixer", *typed], tmp_path) == offered


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_and_option_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(capsys, "completion", shell)
    for word in ("inspect", "verify", "convert", "bench", "doctor", "completion", "json", "preset", "bert_base"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
