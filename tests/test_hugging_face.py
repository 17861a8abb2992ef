"""BERT and FNet of the `transformers` package: files that it wrote, and where it is installed, the package itself."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sparse_mixer import CheckpointError, SparseMixer

FOLDER = Path(__file__).parent / "golden" / "checkpoints"
REQUIRED = os.environ.get("SPARSE_MIXER_REQUIRE_HF") == "1"
# Difference to the package's hidden states.
TOLERANCE = 2e-5


def assert_gives_the_hidden_states(folder: Path) -> None:
    """Compares with ``outputs.npz`` in `folder`, the hidden states of the model there."""
    expected = np.load(folder / "outputs.npz")
    encoder = SparseMixer.load(folder)
    outputs = encoder({key: expected[key] for key in ("input_word_ids", "input_mask", "input_type_ids")})
    # The first of their hidden states is the embeddings.
    for ours, theirs in zip(outputs["encoder_outputs"], expected["hidden_states"][1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    np.testing.assert_allclose(outputs["pooled_output"], expected["pooled_output"], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["hf_bert", "hf_fnet"])
def test_files_give_that_packages_hidden_states(name: str) -> None:
    assert_gives_the_hidden_states(FOLDER / name)
    encoder = SparseMixer.load(FOLDER / name)
    assert SparseMixer.load(FOLDER / name / "model.safetensors").get_config() == encoder.get_config()
    # Into an encoder that stands already, heads being passed over.
    other = SparseMixer(**encoder.get_config())
    report = other.load_weights(FOLDER / name)
    assert (report.scheme, report.prefix, report.complete) == ("huggingface", name.removeprefix("hf_"), True)


def test_models_in_several_files(tmp_path: Path) -> None:
    """As ``save_pretrained`` writes large models; the index beside the files is not needed."""
    source = FOLDER / "hf_bert"
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    names = sorted(tensors)
    for number in (1, 2, 3):
        part = {name: tensors[name] for name in names[number - 1 :: 3]}
        safetensors.numpy.save_file(part, tmp_path / f"model-0000{number}-of-00003.safetensors")
    for name in ("config.json", "outputs.npz"):
        shutil.copy(source / name, tmp_path)
    assert_gives_the_hidden_states(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2 of 3 files"):
        SparseMixer.load(tmp_path)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_package_itself_gives_the_same(tmp_path: Path, seed: int) -> None:
    for package in ("torch", "transformers"):
        # `make test` has them for certain.
        importlib.import_module(package) if REQUIRED else pytest.importorskip(package)
    from reference import make_hugging_face

    make_hugging_face.write(tmp_path, seed)
    for name in ("hf_bert", "hf_fnet"):
        assert_gives_the_hidden_states(tmp_path / name)


def test_fnet_takes_shorter_sequences() -> None:
    encoder = SparseMixer.load(FOLDER / "hf_fnet")
    ids = np.arange(15, dtype=np.int32).reshape(3, 5)
    outputs = encoder({"input_word_ids": ids, "input_type_ids": np.zeros_like(ids)})
    assert outputs["sequence_output"].shape == (3, 5, 16)


def test_variants_that_are_not_computed_are_refused(tmp_path: Path) -> None:
    folder = FOLDER / "hf_bert"
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for changes, message in [
        ({"model_type": "deberta"}, "model_type .deberta."),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "os.system"}, "hidden_act"),
        ({"layer_norm_eps": -1.0}, "layer_norm_epsilon"),
        ({"vocab_size": None}, "'vocab_size' is missing"),
        ({"num_hidden_layers": 2.7}, "num_hidden_layers: expected an integer, got 2.7"),
        ({"num_hidden_layers": 10**12}, "too few for 1000000000000 layers"),
        ({"intermediate_size": 1e400}, "intermediate_size: expected an integer, got inf"),
        ({"hidden_size": "16"}, "hidden_size: expected an integer, got '16'"),
        ({"hidden_dropout_prob": [0.1]}, "hidden_dropout_prob: expected a number"),
        ({"hidden_dropout_prob": 2.0}, "output_dropout: got 2"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"model_type": {}}, "model_type"),
    ]:
        remaining = {key: value for key, value in {**config, **changes}.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(remaining))
        with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path))}.*{message}"):
            SparseMixer.load(tmp_path)
    for text, message in (("{", "not JSON"), ("[]", "expected a JSON object"), ("[" * 100_000, "not JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
            SparseMixer.load(tmp_path)
