"""Everything that the documentation shows runs: Python blocks of README and docs, docstring examples, examples/."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sparse_mixer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def has_tensorflow() -> bool:
    return all(importlib.util.find_spec(name) for name in ("tensorflow", "tf_keras", "official"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other in one namespace, like the cells of a notebook."""
    blocks = BLOCK.findall(page.read_text())
    if any("tensorflow" in block or "official" in block for block in blocks) and not has_tensorflow():
        pytest.skip("shows TensorFlow, which is not installed")
    for module in ("onnxruntime", "openvino", "optax"):
        if any(f"import {module}" in block for block in blocks):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def public_modules() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(sparse_mixer.__path__, "sparse_mixer."))
    return ["sparse_mixer", *(name for name in found if not name.split(".")[-1].startswith("_"))]


@pytest.mark.parametrize("name", public_modules())
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def run_example(name: str, *arguments: str, folder: Path) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path):
    for module in ("tokenizers", "matplotlib", "tqdm"):
        pytest.importorskip(module)
    printed = run_example("quickstart.py", "--sequences=4", "--batch-size=2", folder=tmp_path)
    assert "sequence_output (2, 512, 512), pooled_output (2, 512)" in printed
    assert "left behind" in printed
    assert {path.name for path in (tmp_path / "out/quickstart").iterdir()} == {
        "pooled.npy",
        "routing.png",
        "tokenizer.json",
    }


def test_finetuning(tmp_path):
    for module in ("tokenizers", "matplotlib"):
        pytest.importorskip(module)
    printed = run_example("finetune.py", "--classes=2", "--epochs=1", folder=tmp_path)
    assert "on unseen passages\nwithout reading: most frequent package" in printed
    assert "counting words: naive Bayes" in printed
    saved = {path.name for path in (tmp_path / "out/finetune").iterdir()}
    assert saved == {"state.npz", "model.safetensors", "tokenizer.json", "classes.txt", "learning_curve.png"}
    assert "resumes from out/finetune/state.npz" in run_example(
        "finetune.py", "--classes=2", "--epochs=1", folder=tmp_path
    )


def test_pretraining(tmp_path):
    for module in ("tokenizers", "matplotlib"):
        pytest.importorskip(module)
    printed = run_example("pretrain.py", "--passages=100", "--epochs=1", folder=tmp_path)
    assert "nats per hidden word piece of unseen passages; unigram entropy" in printed
    saved = {path.name for path in (tmp_path / "out/pretrain").iterdir()}
    assert saved == {"state.npz", "encoder.safetensors", "tokenizer.json", "learning_curve.png"}


def test_drop_in(tmp_path):
    if not has_tensorflow():
        pytest.skip("compares with TensorFlow, which is not installed")
    assert "6 layers, 2 losses and 12 metrics agree" in run_example("drop_in.py", folder=tmp_path)
