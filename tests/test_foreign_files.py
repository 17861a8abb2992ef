"""Weight files that other programs have written load to the numbers that those programs compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
from foreign_files import BERT, FOREIGN, GOLDEN, write_tf_model
from sparse_mixer import CheckpointError, SparseMixer, TextEncoder
from sparse_mixer.cli.command import main
from test_hugging_face_kin import distilbert, hidden_states, inputs, roberta, write

TOLERANCE = 2e-5
FILES = {
    "bert_v1_ckpt": "bert_v1",
    "bert_v1.weights.h5": "bert_v1",
    "bert_v1_legacy.h5": "bert_v1",
    "bert_v2.weights.h5": "bert_v2",
    "bert_v2.keras": "bert_v2",
    "tf1": "bert_v2",
    "tf1/bert_model.ckpt": "bert_v2",
    "tf1/bert_model.ckpt.index": "bert_v2",
}


def assert_gives(encoder: SparseMixer, name: str) -> None:
    """Compare with the outputs that the other program's encoder has."""
    expected = np.load(FOREIGN / f"{name}.npz")
    batch = {"input_word_ids": "ids", "input_mask": "mask", "input_type_ids": "types"}
    outputs = encoder({ours: expected[theirs] for ours, theirs in batch.items()})
    np.testing.assert_allclose(outputs["sequence_output"], expected["seq"], atol=TOLERANCE)
    np.testing.assert_allclose(outputs["pooled_output"], expected["pooled"], atol=TOLERANCE)
    for number, hidden in enumerate(outputs["encoder_outputs"]):
        np.testing.assert_allclose(hidden, expected[f"h{number}"], atol=TOLERANCE)


@pytest.mark.parametrize("file", FILES)
def test_bert_of_model_garden_and_of_google_research(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FOREIGN / file
    # With google-research's files comes a configuration.
    config = None if file.startswith("tf1") else BERT
    encoder = SparseMixer.load(path, config=config)
    assert_gives(encoder, FILES[file])
    other = SparseMixer(**BERT, seed=5)
    report = other.load_report(path)
    assert report.complete
    assert len(report.loaded) == len(other.get_weights())
    assert other.load_weights(path) == report
    assert_gives(other, FILES[file])
    assert main(["inspect", str(path)]) == 0
    arguments = [] if config is None else ["--config", json.dumps(BERT)]
    assert main(["verify", str(path), *arguments]) == 0
    assert "fit" in capsys.readouterr().out
    assert main(["convert", str(path), str(tmp_path / "ours.safetensors"), *arguments]) == 0
    assert_gives(SparseMixer.load(tmp_path / "ours.safetensors"), FILES[file])


def keras_names(tmp_path: Path) -> Path:
    """A file of names and arrays alone, without a configuration."""
    SparseMixer.load(FOREIGN / "tf1").save(tmp_path / "names.npz")
    return tmp_path / "names.npz"


def our_own(tmp_path: Path) -> Path:
    SparseMixer.load(FOREIGN / "tf1").save(tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def tf_model(tmp_path: Path) -> Path:
    return write_tf_model(tmp_path / "tf_model", GOLDEN / "checkpoints" / "hf_bert")


def keras_hub(tmp_path: Path) -> Path:
    return FOREIGN / "keras_hub"


@pytest.mark.parametrize("file", [*FILES, keras_names, our_own, tf_model, keras_hub])
def test_the_first_positions_are_enough(file: Any, tmp_path: Path) -> None:
    """Of every kind of file: the numbers that the whole encoder has for short sequences."""
    path = FOREIGN / file if isinstance(file, str) else file(tmp_path)
    config = BERT | {"shorter_sequences": True} if isinstance(file, str) or file is keras_names else None
    whole, short = (SparseMixer.load(path, config=config, **more) for more in ({}, {"max_sequence_length": 5}))
    assert short.arguments.max_sequence_length == 5
    assert len(short.loaded_from.loaded) == len(short.get_weights())
    batch = inputs(5)
    expected = whole(batch) if file is not our_own else SparseMixer.load(FOREIGN / "tf1")(batch)
    np.testing.assert_array_equal(short(batch)["pooled_output"], expected["pooled_output"])
    with pytest.raises(CheckpointError, match="position_embedding/embeddings"):
        SparseMixer.load(path, config=config, max_sequence_length=9)


def test_names_in_the_report_are_the_files(tmp_path: Path) -> None:
    encoder = SparseMixer(**BERT)
    loaded = encoder.load_report(FOREIGN / "bert_v1_ckpt").loaded
    ending = "/.ATTRIBUTES/VARIABLE_VALUE"
    assert loaded["word_embeddings/embeddings"] == f"model/layer_with_weights-0/embeddings{ending}"
    assert loaded["transformer/layer_1/output/bias"] == f"model/layer_with_weights-5/_output_dense/bias{ending}"
    assert loaded["pooler_transform/kernel"] == f"model/layer_with_weights-6/kernel{ending}"
    google = encoder.load_report(FOREIGN / "tf1")
    assert (google.scheme, google.prefix) == ("google_bert", "bert")
    wide = SparseMixer(**{**BERT, "hidden_size": 18})
    assert "'model/layer_with_weights-0/embeddings/" in wide.load_report(FOREIGN / "bert_v1_ckpt").summary()


def test_the_folder_of_google_research_says_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(FOREIGN / "tf1", folder)
    encoder = SparseMixer.load(folder, max_sequence_length=5, num_layers=1, with_pooler=False)
    assert encoder.arguments.max_sequence_length == 5
    assert encoder.arguments.inner_activation == {"name": "gelu_tanh"}
    for changes, message in [
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
        ({"hidden_size": "16"}, "hidden_size: expected an integer"),
        ({"num_hidden_layers": 10**9}, "too few for 1000000000 layers"),
    ]:
        config = json.loads((FOREIGN / "tf1" / "bert_config.json").read_text())
        (folder / "bert_config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=message):
            SparseMixer.load(folder)
    (folder / "bert_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"bert_config\.json: not JSON"):
        SparseMixer.load(folder)
    for ending in ("index", "data-00000-of-00001"):
        shutil.copy(folder / f"bert_model.ckpt.{ending}", folder / f"model.ckpt-1000.{ending}")
    with pytest.raises(
        CheckpointError, match=r"2 checkpoints in the folder; give one of them: bert_model\.ckpt, model"
    ):
        SparseMixer(**BERT).load_weights(folder)


def test_folders_with_a_vocabulary_encode_texts(tmp_path: Path) -> None:
    """As google-research and the Model Garden publish their BERTs."""
    pytest.importorskip("tokenizers")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    for name in ("bert_v1_ckpt", "tf1/bert_model.ckpt"):
        folder = tmp_path / name.split("_")[0]
        folder.mkdir(parents=True)
        for ending in ("index", "data-00000-of-00001"):
            shutil.copy(FOREIGN / f"{name}.{ending}", folder / f"bert_model.ckpt.{ending}")
        shutil.copy(FOREIGN / "tf1" / "bert_config.json", folder)
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
        assert_gives(SparseMixer.load(folder), FILES[name])
        model = TextEncoder(folder)
        tokens = np.array([[2, 4, 5, 3]])
        batch = {"input_word_ids": tokens, "input_mask": np.ones((1, 4)), "input_type_ids": np.zeros_like(tokens)}
        states = SparseMixer.load(folder)(batch)["sequence_output"][0]
        np.testing.assert_allclose(model.encode("A b"), states.mean(axis=0), atol=1e-6)


def _datasets(group: Any) -> list[str]:
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


@pytest.mark.parametrize("file", ["sm_bfloat16.weights.h5", "sm_bfloat16_legacy.h5"])
def test_bfloat16_in_hdf5(file: str, tmp_path: Path) -> None:
    config = json.loads((FOREIGN / "sm.json").read_text())
    encoder = SparseMixer.load(FOREIGN / file, config=config)
    expected = np.load(FOREIGN / "sm.npz")
    batch = {"input_word_ids": "ids", "input_mask": "mask", "input_type_ids": "types"}
    outputs = encoder({ours: expected[theirs] for ours, theirs in batch.items()})
    np.testing.assert_allclose(outputs["sequence_output"], expected["seq"], atol=0.05)
    with h5py.File(FOREIGN / file) as opened:
        tables = [array for name in _datasets(opened) if (array := opened[name][()]).shape == (30, 16)]
    bits = encoder.get_weights()[0].view(np.uint32)
    np.testing.assert_array_equal(bits, tables[0].view(np.uint16).astype(np.uint32) << 16)
    # Layer norms and routers are float32 there.
    values = {v.key: v.numpy() for v in encoder.all_variables}
    halves = {
        key: (array.view(np.uint32) >> 16).astype(np.uint16)
        for key, array in values.items()
        if "norm" not in key and "router" not in key
    }
    assert all(
        np.array_equal(values[key].view(np.uint32), array.astype(np.uint32) << 16) for key, array in halves.items()
    )
    # Both files hold the same weights; other mappings of two bytes, too.
    other = SparseMixer.load(FOREIGN / "sm_bfloat16.weights.h5", config=config)
    for ours, theirs in zip(encoder.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    opaque = values | {key: array.view("V2") for key, array in halves.items()}
    np.savez(tmp_path / "weights.npz", **opaque)
    for source in (opaque, tmp_path / "weights.npz"):
        fresh = SparseMixer(**{**config, "seed": 4})
        assert fresh.load_weights(source).complete
        for ours, theirs in zip(fresh.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert main(["verify", str(FOREIGN / file), "--config", json.dumps(config)]) == 0


def test_hugging_faces_tensorflow_files(tmp_path: Path) -> None:
    folder = write_tf_model(tmp_path / "bert", GOLDEN / "checkpoints" / "hf_bert")
    expected = np.load(GOLDEN / "checkpoints" / "hf_bert" / "outputs.npz")
    encoder = SparseMixer.load(folder)
    outputs = encoder(inputs())
    np.testing.assert_allclose(outputs["pooled_output"], expected["pooled_output"], atol=TOLERANCE)
    np.testing.assert_allclose(outputs["sequence_output"], expected["hidden_states"][-1], atol=TOLERANCE)
    for path in (folder, folder / "tf_model.h5"):
        report = SparseMixer(**encoder.get_config()).load_weights(path)
        assert (report.complete, report.scheme) == (True, "huggingface_tf")
        assert report.prefix == "bert/tf_bert_for_pre_training/bert"
    # The safetensors file counts where both are there.
    shutil.copy(GOLDEN / "checkpoints" / "hf_bert" / "model.safetensors", folder)
    assert SparseMixer(**encoder.get_config()).load_report(folder).scheme == "huggingface"


def test_hugging_faces_tensorflow_files_of_berts_kin(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model_type": "roberta", "max_position_embeddings": 10, "pad_token_id": 1}
    torch = write(tmp_path / "torch", roberta, **changes)
    folder = write_tf_model(tmp_path / "roberta", torch, model="tf_roberta_model")
    batch = inputs()
    states = [hidden_states(SparseMixer.load(path), batch) for path in (folder, torch)]
    np.testing.assert_array_equal(states[0][-1], states[1][-1])
    torch = write(tmp_path / "torch2", distilbert)
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 30, "max_position_embeddings": 8}
    (torch / "config.json").write_text(json.dumps({"model_type": "distilbert", "activation": "gelu", **sizes}))
    folder = write_tf_model(tmp_path / "distilbert", torch, model="tf_distil_bert_model")
    batch["input_type_ids"] = np.zeros((3, 8), np.int32)
    states = [hidden_states(SparseMixer.load(path), batch) for path in (folder, torch)]
    np.testing.assert_array_equal(states[0][-1], states[1][-1])


def test_presets_of_keras_hub(tmp_path: Path) -> None:
    folder = FOREIGN / "keras_hub"
    expected = np.load(folder / "outputs.npz")
    batch = {
        "input_word_ids": expected["ids"].astype(np.int32),
        "input_mask": expected["mask"].astype(np.int32),
        "input_type_ids": expected["types"].astype(np.int32),
    }
    for path in (folder, folder / "model.weights.h5"):
        encoder = SparseMixer.load(path)
        outputs = encoder(batch)
        np.testing.assert_allclose(outputs["pooled_output"], expected["pooled"], atol=TOLERANCE)
        real = expected["mask"] == 1
        np.testing.assert_allclose(outputs["sequence_output"][real], expected["seq"][real], atol=TOLERANCE)
    assert SparseMixer(**encoder.get_config()).load_weights(folder).scheme == "keras_hub"
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    for change, message in [
        ({"registered_name": "keras_hub>GemmaBackbone"}, "'keras_hub>GemmaBackbone' is not read"),
        ({"config": {**config["config"], "hidden_dim": None}}, "hidden_size: expected an integer"),
        ({"config": []}, "expected a mapping, got list"),
    ]:
        (tmp_path / "other" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            SparseMixer.load(tmp_path / "other")


def test_state_of_optimisers_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    """That of TensorFlow 1, beside every variable, in a file without a model's scope in front."""
    encoder = SparseMixer(**BERT, seed=1)
    tensors = {v.key: v.numpy() for v in encoder.all_variables}
    state = {f"{name}/{slot}": values for name, values in tensors.items() for slot in ("adam_m", "adam_v", "Momentum")}
    safetensors.numpy.save_file(tensors | state | {"global_step": np.ones(1, np.int64)}, tmp_path / "all.safetensors")
    fresh = SparseMixer(**BERT, seed=2)
    assert fresh.load_weights(tmp_path / "all.safetensors").complete
    np.testing.assert_array_equal(fresh.get_weights()[0], encoder.get_weights()[0])
