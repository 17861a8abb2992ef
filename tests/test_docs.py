"""Everything that the documentation shows runs: Python blocks of README and docs, docstring examples, examples/."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sparse_mixer

from examples.corpus import sentence_halves

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
    for package in ("onnxruntime", "openvino", "optax", "sklearn", "tokenizers", "torch"):
        if any(f"import {package}" in block or f"from {package}" in block for block in blocks):
            pytest.importorskip(package)
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


def test_finetuning_resumes_and_repeats(tmp_path):
    for module in ("tokenizers", "matplotlib"):
        pytest.importorskip(module)
    few = ("finetune.py", "--sentences=200", "--epochs=1")
    printed = run_example(*few, folder=tmp_path)
    assert re.search(r"naive Bayes on counts of words +50.0%", printed)
    saved = {path.name for path in (tmp_path / "out/finetune").iterdir()}
    assert saved == {"state.npz", "model.safetensors", "tokenizer.json", "learning_curve.png"}
    assert "resumes from out/finetune/state.npz" in run_example(*few, folder=tmp_path)
    run_example(*few, "--output=again", folder=tmp_path)
    models = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out/finetune", "again")]
    assert models[0] == models[1]


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """The folder of a small BERT with random weights and the examples' vocabulary."""
    folder = tmp_path_factory.mktemp("sentence encoder")
    encoder = sparse_mixer.SparseMixer(
        4096, hidden_size=32, num_layers=2, attention_layers=(0, 1), moe_layers=(), num_attention_heads=2, inner_dim=64,
        max_sequence_length=128, seed=0,
    )  # fmt: skip
    encoder.save(folder, file_format="huggingface")
    shutil.copy(ROOT / "examples/vocab.txt", folder)
    return folder


def test_search(tmp_path, sentence_encoder):
    for module in ("tokenizers", "matplotlib", "tqdm"):
        pytest.importorskip(module)
    printed = run_example("search.py", f"--model={sentence_encoder}", "--passages=60", "zip a file", folder=tmp_path)
    assert "60 passages in" in printed
    assert "1. zip a file" in printed
    assert {path.name for path in (tmp_path / "out/search").iterdir()} == {"vectors.npy", "map.png"}


def test_distillation(tmp_path, sentence_encoder):
    for module in ("tokenizers", "matplotlib", "tqdm"):
        pytest.importorskip(module)
    lines = [" ".join(halves) for halves in sentence_halves()[:2300]]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    few = ("--texts=texts.txt", "--updates=40", "--every=20", "--batch-size=16", "--length=32", "--layers=2")
    run_example("distill.py", str(sentence_encoder), *few, folder=tmp_path)
    result = json.loads((tmp_path / "out/distill/result.json").read_text())
    assert result["curve"][-1]["loss"] < result["curve"][0]["loss"]
    assert sparse_mixer.SparseMixer.load(tmp_path / "out/distill/student.safetensors").get_config()["num_layers"] == 2


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
