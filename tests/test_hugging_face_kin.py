"""Hugging Face folders beyond plain BERT: without a pooler, cut, incomplete, and BERT's kin under their own names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer.models import BertClassifier

FOLDER = Path(__file__).parent / "golden" / "checkpoints" / "hf_bert"
Tensors = dict[str, Any]


def write(folder: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A folder with the tensors of the golden BERT after `change`, and its configuration with `config`."""
    folder.mkdir(exist_ok=True)
    tensors = change(safetensors.numpy.load_file(FOLDER / "model.safetensors"))
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    stored = {**json.loads((FOLDER / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def without_pooler(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "pooler" not in name}


def inputs(length: int = 8) -> dict[str, Any]:
    expected = np.load(FOLDER / "outputs.npz")
    return {key: expected[key][:, :length] for key in ("input_word_ids", "input_mask", "input_type_ids")}


def hidden_states(encoder: SparseMixer, batch: Mapping[str, Any]) -> list[Any]:
    states: list[Any] = encoder(batch, outputs=["encoder_outputs"])["encoder_outputs"]
    return states


def test_without_pooler(tmp_path: Path) -> None:
    encoder = SparseMixer.load(write(tmp_path, without_pooler))
    outputs = encoder(inputs())
    expected = np.load(FOLDER / "outputs.npz")["hidden_states"]
    np.testing.assert_allclose(outputs["sequence_output"], expected[-1], atol=2e-5)
    assert "pooled_output" not in outputs
    with pytest.raises(KeyError, match="no pooler"):
        outputs["pooled_output"]
    with pytest.raises(ValueError, match="no pooler"):
        encoder(inputs(), outputs=["pooled_output"])
    with pytest.raises(ValueError, match="use_encoder_pooler=False"):
        BertClassifier(encoder, 2)
    with pytest.raises(AttributeError, match="no pooler"):
        _ = encoder.pooler_layer
    lines: list[str] = []
    encoder.summary(lines.append)
    assert "pooler" not in lines[0]
    assert len(encoder.get_weights()) == len(SparseMixer.load(FOLDER).get_weights()) - 2
    # Trained and saved as any other.
    _, vjp = encoder.vjp(inputs())
    assert np.abs(vjp({"sequence_output": outputs["sequence_output"]})["word_embeddings/embeddings"]).max() > 0
    encoder.save(tmp_path / "own.safetensors")
    again = SparseMixer.load(tmp_path / "own.safetensors")
    np.testing.assert_array_equal(again(inputs())["sequence_output"], outputs["sequence_output"])


def test_the_pooler_can_be_left_out() -> None:
    encoder = SparseMixer.load(FOLDER, with_pooler=False)
    assert list(encoder(inputs())) == ["sequence_output", "encoder_outputs"]
    with pytest.raises(CheckpointError, match=r"unexpected: bert\.pooler\.dense\.bias"):
        SparseMixer.load(FOLDER, config=encoder.get_config())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_shorter_sequences_have_the_bits_of_padded_ones(dtype: str) -> None:
    """Whatever stands in the padding."""
    config = SparseMixer.load(FOLDER).get_config()
    sizes = {"hidden_size": 96, "num_attention_heads": 3, "inner_dim": 128, "max_sequence_length": 200}
    encoder = SparseMixer(**{**config, **sizes, "dtype": dtype, "seed": 3, "shorter_sequences": True})
    random = np.random.default_rng(0)
    for length in (1, 2, 7, 16, 31, 64, 65, 81, 100, 129, 199):
        ids = random.integers(0, 30, (2, 200), np.int32)
        mask = np.zeros((2, 200), np.int32)
        mask[:, :length] = 1
        batch = {"input_word_ids": ids, "input_mask": mask, "input_type_ids": np.zeros_like(ids)}
        padded = encoder(batch)
        for to in {length, min(length + 3, 200), min(length + 40, 200)}:
            short = encoder({name: array[:, :to] for name, array in batch.items()})
            for name in ("sequence_output", "pooled_output"):
                theirs = padded[name][:, :length] if name == "sequence_output" else padded[name]
                ours = short[name][:, :length] if name == "sequence_output" else short[name]
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {length} {to}")


def test_lengths_are_exact_unless_relaxed() -> None:
    encoder = SparseMixer.load(FOLDER)
    assert encoder(inputs(5))["sequence_output"].shape == (3, 5, 16)
    with pytest.raises(ValueError, match="got sequence length 9, expected 1 to max_sequence_length"):
        encoder({name: np.zeros((1, 9), np.int32) for name in inputs()})
    exact = SparseMixer.load(FOLDER, shorter_sequences=False)
    with pytest.raises(ValueError, match="got sequence length 5, expected max_sequence_length"):
        exact(inputs(5))
    with pytest.raises(ValueError, match=r"shorter_sequences: got true, but weights of linear mixing"):
        SparseMixer(30, num_layers=2, shorter_sequences=True)
    assert "shorter_sequences" not in SparseMixer(30, num_layers=1, hidden_size=8, inner_dim=8).get_config()


def test_fewer_positions_and_layers() -> None:
    whole = SparseMixer.load(FOLDER)
    short = SparseMixer.load(FOLDER, max_sequence_length=5)
    assert short.arguments.max_sequence_length == 5
    for ours, theirs in zip(hidden_states(short, inputs(5)), hidden_states(whole, inputs(5)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(CheckpointError, match="position_embedding/embeddings"):
        SparseMixer.load(FOLDER, max_sequence_length=9)
    lower = SparseMixer.load(FOLDER, num_layers=1)
    np.testing.assert_array_equal(hidden_states(lower, inputs())[0], hidden_states(whole, inputs())[0])
    assert lower.pooler_layer is not None
    with pytest.raises(CheckpointError, match="too few"):
        SparseMixer.load(FOLDER, num_layers=50)
    # Of our own files, too.
    assert SparseMixer.load(FOLDER, num_layers=1, max_sequence_length=4, with_pooler=False).count_params() > 0


def test_what_is_not_there_is_drawn_if_that_is_allowed(tmp_path: Path) -> None:
    def incomplete(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if "layer.1.intermediate" not in name}

    folder = write(tmp_path, incomplete)
    with pytest.raises(CheckpointError, match="missing: transformer/layer_1/intermediate/kernel"):
        SparseMixer.load(folder)
    encoder = SparseMixer.load(folder, strict=False, seed=4)
    report = encoder.loaded_from
    assert report.missing == [f"transformer/layer_1/intermediate/{leaf}" for leaf in ("kernel", "bias")]
    whole = SparseMixer.load(FOLDER)
    np.testing.assert_array_equal(hidden_states(encoder, inputs())[0], hidden_states(whole, inputs())[0])
    assert np.abs(hidden_states(encoder, inputs())[1] - hidden_states(whole, inputs())[1]).max() > 1e-3
    drawn = next(v for v in encoder.all_variables if v.key == "transformer/layer_1/intermediate/kernel").numpy()
    again = SparseMixer.load(folder, strict=False, seed=4)
    assert drawn.std() > 0
    for one, other in zip(encoder.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(CheckpointError, match="none of the encoder's weights"):
        SparseMixer.load(
            write(
                tmp_path,
                lambda tensors: (
                    {"x": np.zeros(3, np.float32)}
                    | dict.fromkeys([f"y{number}" for number in range(40)], np.zeros(1, np.float32))
                ),
            ),
            strict=False,
        )


def roberta(tensors: Tensors) -> Tensors:
    renamed = {name.replace("bert.", "roberta.", 1): tensor for name, tensor in without_pooler(tensors).items()}
    table = "roberta.embeddings.position_embeddings.weight"
    renamed[table] = np.concatenate([np.full((2, 16), 7, np.float32), renamed[table]])
    return renamed


def test_roberta(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model_type": "roberta", "max_position_embeddings": 10, "layer_norm_eps": 1e-5}
    folder = write(tmp_path, roberta, **changes, pad_token_id=1)
    encoder, bert = SparseMixer.load(folder), SparseMixer.load(FOLDER, layer_norm_epsilon=1e-5, with_pooler=False)
    assert encoder.get_config() == bert.get_config()
    for ours, theirs in zip(hidden_states(encoder, inputs()), hidden_states(bert, inputs()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert SparseMixer.load(folder, max_sequence_length=3)(inputs(3))["sequence_output"].shape == (3, 3, 16)
    other = SparseMixer(**encoder.get_config())
    report = other.load_weights(folder)
    assert report.complete
    assert report.prefix == "roberta"
    np.testing.assert_array_equal(hidden_states(other, inputs())[1], hidden_states(encoder, inputs())[1])
    # The epsilon counts where rows hardly vary.
    flat = {"input_word_embeddings": np.zeros((1, 8, 16), np.float32), "input_mask": np.ones((1, 8), np.int32)}
    small = SparseMixer(**{**encoder.get_config(), "layer_norm_epsilon": 0.5}, seed=0)
    large = SparseMixer(**{**encoder.get_config(), "layer_norm_epsilon": 1e-12}, seed=0)
    results = [e({**flat, "input_type_ids": np.zeros((1, 8), np.int32)})["sequence_output"] for e in (small, large)]
    assert np.abs(results[0] - results[1]).max() > 0.1


DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def distilbert(tensors: Tensors) -> Tensors:
    renamed = {}
    for name, tensor in without_pooler(tensors).items():
        if "token_type" in name:
            continue
        for theirs, its in DISTILBERT.items():
            if f".{theirs}." in name:
                name = name.replace(theirs, its).replace("encoder.layer", "transformer.layer")
                break
        renamed[name.replace("bert.", "distilbert.", 1)] = tensor
    return renamed


def test_distilbert(tmp_path: Path) -> None:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 30, "max_position_embeddings": 8}
    folder = write(tmp_path, distilbert)
    (folder / "config.json").write_text(json.dumps({"model_type": "distilbert", "activation": "gelu", **sizes}))
    encoder = SparseMixer.load(folder)
    batch = {**inputs(), "input_type_ids": np.zeros((3, 8), np.int32)}
    bert = SparseMixer.load(FOLDER, with_pooler=False)
    types = next(v for v in bert.all_variables if v.key == "type_embeddings/embeddings")
    types.assign(np.zeros(types.shape, np.float32))
    for ours, theirs in zip(hidden_states(encoder, batch), hidden_states(bert, batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = SparseMixer(**encoder.get_config())
    assert other.load_weights(folder).complete
    np.testing.assert_array_equal(hidden_states(other, batch)[1], hidden_states(encoder, batch)[1])


def test_electra(tmp_path: Path) -> None:
    config = {**SparseMixer.load(FOLDER, with_pooler=False).get_config(), "embedding_width": 6, "seed": 1}
    ours = SparseMixer(**config)
    theirs = {
        "word_embeddings": "embeddings.word_embeddings.weight",
        "position_embedding": "embeddings.position_embeddings.weight",
        "type_embeddings": "embeddings.token_type_embeddings.weight",
    }
    values = {variable.key: variable.numpy() for variable in ours.all_variables}

    def electra(tensors: Tensors) -> Tensors:
        renamed = {f"electra.{theirs[name]}": values[f"{name}/embeddings"] for name in theirs}
        renamed["electra.embeddings.LayerNorm.weight"] = values["embeddings/layer_norm/gamma"]
        renamed["electra.embeddings.LayerNorm.bias"] = values["embeddings/layer_norm/beta"]
        renamed["electra.embeddings_project.weight"] = values["embedding_projection/kernel"].T
        renamed["electra.embeddings_project.bias"] = values["embedding_projection/bias"]
        blocks = {name.replace("bert.", "electra.", 1): tensor for name, tensor in tensors.items() if ".layer." in name}
        return renamed | blocks

    folder = write(tmp_path, electra, model_type="electra", embedding_size=6)
    encoder = SparseMixer.load(folder)
    bert = SparseMixer.load(FOLDER)
    for variable in ours.all_variables:
        if variable.key.startswith("transformer/"):
            variable.assign(next(v for v in bert.all_variables if v.key == variable.key).numpy())
    np.testing.assert_array_equal(hidden_states(encoder, inputs())[-1], hidden_states(ours, inputs())[-1])


@pytest.mark.parametrize("kind", ["modernbert", "albert", "deberta-v2", "gpt2"])
def test_other_models_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"model_type '{kind}' is not read"):
        SparseMixer.load(write(tmp_path, dict, model_type=kind))


def test_an_index_stands_for_its_folder(tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    names = sorted(tensors)
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, file in enumerate(files):
        safetensors.numpy.save_file({name: tensors[name] for name in names[number::2]}, tmp_path / file)
    shutil.copy(FOLDER / "config.json", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}))
    encoder = SparseMixer.load(index)
    np.testing.assert_array_equal(
        encoder(inputs())["pooled_output"], SparseMixer.load(FOLDER)(inputs())["pooled_output"]
    )
