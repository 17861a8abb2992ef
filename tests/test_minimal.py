"""The lower bounds of dependencies in pyproject.toml are those that `make minimal` runs tests with."""

from __future__ import annotations

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"jax", "ray", "scikit-learn", "tf-keras", "torch"}
"""Frameworks, of gigabytes together."""


def bounds() -> dict[str, str]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = {
        name: needs for name, needs in project["optional-dependencies"].items() if name not in ("test", "reference")
    }
    needs = [*project["dependencies"], *(need for needs in extras.values() for need in needs)]
    found = (re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", need) for need in needs)
    return {match[1]: match[2] for match in found if match}


def pinned() -> dict[str, str]:
    lines = (ROOT / "tests/requirements/minimal.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def padded(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0, 0][:3]


def test_all_bounds_are_tested() -> None:
    tested = pinned()
    assert {name: padded(tested[name]) for name in bounds().keys() - HEAVY} == {
        name: padded(version) for name, version in bounds().items() if name not in HEAVY
    }


@pytest.mark.skipif(os.environ.get("SPARSE_MIXER_MINIMAL") != "1", reason="`make minimal` installs the oldest versions")
def test_the_oldest_versions_are_installed() -> None:
    for name, version in pinned().items():
        assert importlib.metadata.version(name) == version


@pytest.mark.skipif(os.environ.get("SPARSE_MIXER_MINIMAL") != "1", reason="other tests run exported models")
def test_the_oldest_onnx_writes_models(tmp_path: Path) -> None:
    import onnx
    import sparse_mixer

    encoder = sparse_mixer.SparseMixer(20, hidden_size=8, num_layers=2, inner_dim=8, max_sequence_length=8)
    encoder.to_onnx(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
