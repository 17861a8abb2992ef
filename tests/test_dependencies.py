"""What the released library is built from: licences and sources as `deny.toml` allows, and not too much of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RULES = tomllib.loads((ROOT / "deny.toml").read_text())
MOST_CRATES = 80

pytestmark = pytest.mark.skipif(shutil.which("cargo") is None, reason="asks cargo")


@pytest.fixture(scope="module")
def crates() -> list[dict[str, Any]]:
    """Everything in the lock file that the extension can be built from, tests' own needs left out."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--offline", "--features=python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        done = subprocess.run(command[:-2] + command[-1:], cwd=ROOT, capture_output=True, text=True, check=True)
    metadata = json.loads(done.stdout)
    needs = {
        node["id"]: [
            dependency["pkg"]
            for dependency in node["deps"]
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"])
        ]
        for node in metadata["resolve"]["nodes"]
    }
    used, pending = set(), [metadata["resolve"]["root"]]
    while pending:
        crate = pending.pop()
        if crate not in used:
            used.add(crate)
            pending += needs[crate]
    return [package for package in metadata["packages"] if package["id"] in used]


def allows(expression: str) -> bool:
    """Whether a licence expression (SPDX; a slash is an old OR) can be met with allowed licences."""
    words = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    allowed, place = set(RULES["licenses"]["allow"]), 0

    def term() -> bool:
        nonlocal place
        if words[place] == "(":
            place += 1
            value = either()
            place += 1
            return value
        licence = words[place]
        place += 1
        if place < len(words) and words[place] == "WITH":
            licence = f"{licence} WITH {words[place + 1]}"
            place += 2
        return licence in allowed

    def both() -> bool:
        nonlocal place
        value = term()
        while place < len(words) and words[place] == "AND":
            place += 1
            value = term() and value
        return value

    def either() -> bool:
        nonlocal place
        value = both()
        while place < len(words) and words[place] in ("OR", "/"):
            place += 1
            value = both() or value
        return value

    return either()


def test_licences(crates: list[dict[str, Any]]) -> None:
    refused = {f"{crate['name']}: {crate['license']}" for crate in crates if not allows(crate["license"] or "none")}
    assert not refused


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("GPL-3.0 OR MIT", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0 AND MIT", False),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0 WITH Classpath-exception-2.0", False),
    ],
)
def test_expressions_are_understood(expression: str, allowed: bool) -> None:
    assert allows(expression) == allowed


def test_sources(crates: list[dict[str, Any]]) -> None:
    registries = {f"registry+{registry}" for registry in RULES["sources"]["allow-registry"]}
    assert {crate["source"] for crate in crates} - {None} <= registries


def test_there_are_few(crates: list[dict[str, Any]]) -> None:
    assert len(crates) <= MOST_CRATES
