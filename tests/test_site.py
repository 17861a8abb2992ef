"""The documentation site has a reference page for every public module; `make docs-site` checks all names in it."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path
from types import ModuleType

import public_names
import pytest

FOLDER = Path(__file__).parents[1] / "docs/site"

pytestmark = pytest.mark.skipif(not public_names.PACKAGE.is_dir(), reason="needs the sources")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_module_and_name_loaded_on_demand_has_a_page() -> None:
    pages = load("pages").reference()
    for name in public_names.public_modules():
        assert f"::: {name}\n" in pages[f"reference/{name}.md"]
    for name, file in public_names.ON_DEMAND.items():
        module, _, own = name.rpartition(".")
        assert f"::: {file}.{own}\n" in pages[f"reference/{module}.md"]


def test_a_name_that_is_not_described_is_found() -> None:
    names = {name.partition("(")[0] for name in public_names.names()}

    def inventory(described: set[str]) -> bytes:
        lines = "\n".join(f"{name} py:obj 1 x -" for name in sorted(described))
        return b"# Sphinx inventory\n# compressed using zlib.\n" + zlib.compress(lines.encode())

    check = load("check")
    assert check.missing(inventory(names)) == []
    assert check.missing(inventory(names - {"sparse_mixer.SparseMixer.save"})) == ["sparse_mixer.SparseMixer.save"]


def test_tutorials_show_code_and_what_it_printed() -> None:
    pages = load("pages").tutorials()
    assert pages
    for text in pages.values():
        assert text.startswith("# ")
        assert "```python\n" in text
