"""What docs/support.md promises is what the package declares and what is built and tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/support.md").read_text()
WORKFLOW = (ROOT / ".github/workflows/release.yml").read_text()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return dict(tomllib.load(file)["project"])


def row(name: str) -> list[str]:
    """The cells of a line of the table."""
    (line,) = re.findall(rf"^\| {re.escape(name)}[^|]* \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_python(project: dict[str, Any]) -> None:
    oldest, tested = row("Python")
    versions = re.findall(r"3\.\d+", tested.split("tried on")[1])
    prefix = "Programming Language :: Python :: 3."
    classified = [text.rsplit(" ", 1)[1] for text in project["classifiers"] if text.startswith(prefix)]
    built = re.findall(r'"(3\.\d+)"', re.findall(r"python: (\[.*\])", WORKFLOW)[0])
    assert versions == classified == built
    assert versions[0] == oldest
    assert project["requires-python"] == f">={oldest}"
    assert f"python{oldest}" in (ROOT / "Makefile").read_text()


def test_numpy(project: dict[str, Any]) -> None:
    (need,) = project["dependencies"]
    oldest = row("numpy")[0]
    assert need == f"numpy>={oldest.removesuffix('.0')}"
    assert f"numpy=={oldest}\n" in (ROOT / "tests/requirements/minimal.txt").read_text()


def test_platforms() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name, libc in (("Linux with glibc", "manylinux"), ("Linux with musl", "musllinux")):
        version, wheels = row(name)
        tag = f"{libc}_{version.replace('.', '_')}"
        assert f"`{tag}`" in wheels
        for processor in re.findall("x86_64|aarch64", wheels):
            target = f"{processor}-unknown-linux-{'gnu' if libc == 'manylinux' else 'musl'}"
            assert f"{target}:{tag}" in makefile
            assert f"target: {target}, compatibility: {tag}" in WORKFLOW
    with open(ROOT / "Cargo.toml", "rb") as file:
        package = tomllib.load(file)["package"]
    assert row("Rust")[0] == package["rust-version"]


def test_version() -> None:
    """One version, and one date of it, in all files that name them."""
    with open(ROOT / "Cargo.toml", "rb") as file:
        version = tomllib.load(file)["package"]["version"]
    for lock in ("Cargo.lock", "fuzz/Cargo.lock"):
        with open(ROOT / lock, "rb") as file:
            packages = tomllib.load(file)["package"]
        assert [package["version"] for package in packages if package["name"] == "sparse_mixer"] == [version], lock
    released = re.findall(r"^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0][0] == version
    assert released == sorted(released, key=lambda entry: entry[1], reverse=True)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version}\ndate-released: {released[0][1]}\n" in citation


def test_actions_are_pinned_by_hash() -> None:
    uses = re.findall(r"uses: (\S+)", WORKFLOW)
    assert uses
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in uses)
