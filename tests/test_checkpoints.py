"""Saving and loading: files of other programs, and our own."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import sparse_mixer
from checkpoint_cases import GOLDEN, assert_unchanged, weights_of
from encoders import ARGUMENTS, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import CheckpointError, SparseMixer

pytestmark = pytest.mark.usefixtures("no_frameworks")
WRITTEN_BY_TENSORFLOW = [
    "functional",
    "functional/ckpt.index",
    "encoder/ckpt",
    "pretrainer/ckpt",
    "classifier/ckpt",
    "saved_model",
    "encoder.weights.h5",
    "legacy.h5",
    "weights.npz",
]


# Reading what others wrote ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN_BY_TENSORFLOW)
def test_outputs_are_those_of_the_encoder_that_tensorflow_saved(name: str, config: dict[str, Any]) -> None:
    expected = np.load(GOLDEN / "checkpoints" / "outputs.npz")
    inputs = {key: expected[key] for key in ("input_word_ids", "input_mask", "input_type_ids")}
    encoder = SparseMixer(**config)
    report = encoder.load_weights(GOLDEN / "checkpoints" / name)
    assert report.complete
    assert len(report.loaded) == len(encoder.weights)
    built = SparseMixer.load(GOLDEN / "checkpoints" / name, config=config)
    for loaded in (encoder, built):
        outputs = loaded(inputs)
        for key in ("sequence_output", "pooled_output"):
            np.testing.assert_allclose(outputs[key], expected[key], atol=2e-6)


def test_keras_archives_hold_weights_h5(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", '{"class_name": "os.system", "config": "false"}')
        archive.write(GOLDEN / "checkpoints" / "encoder.weights.h5", "model.weights.h5")
    report = SparseMixer(**config).load_weights(path)
    assert (report.format, report.scheme, report.complete) == ("keras", "weights_h5", True)


def test_flax_folder_differs_from_a_keras_encoder_only_where_the_papers_semantics_do() -> None:
    encoder = SparseMixer(
        40,
        hidden_size=16,
        num_layers=3,
        moe_layers=(1,),
        attention_layers=(2,),
        num_experts=4,
        num_attention_heads=2,
        max_sequence_length=12,
        type_vocab_size=4,
        inner_dim=20,
        norm_first=True,
    )
    report = encoder.load_report(GOLDEN / "jax" / "ckpt_linear_2_devices")
    assert (report.format, report.scheme, report.prefix) == ("flax", "flax", "params/encoder")
    assert not report.missing
    projection = "params/encoder/embedder/hidden_mapping_in"
    assert list(report.unexpected) == [f"{projection}/bias", f"{projection}/kernel"]
    # The dense layers of that model are wider than its experts.
    assert {mismatch.name.split("/")[1] for mismatch in report.shape} == {"layer_0", "layer_2"}
    before = weights_of(encoder)
    partial = encoder.load_weights(GOLDEN / "jax" / "ckpt_linear_2_devices", strict=False)
    flax = np.load(GOLDEN / "jax" / "ckpt_linear_2_devices" / "expected.npz")
    by_name = {weight.key: weight.numpy() for weight in encoder.weights}
    kernel = flax["params/encoder/expert_1/intermediate/kernel"]
    np.testing.assert_array_equal(by_name["transformer/layer_1/moe/experts/intermediate/kernel"], kernel.swapaxes(0, 1))
    bias = flax["params/encoder/expert_1/output/bias"]
    np.testing.assert_array_equal(by_name["transformer/layer_1/moe/experts/output/bias"][:, 0], bias.T)
    position = flax["params/encoder/embedder/position/embedding"]
    np.testing.assert_array_equal(by_name["position_embedding/embeddings"], position[0])
    untouched = [weight.key for weight in encoder.weights].index("transformer/layer_0/intermediate/kernel")
    np.testing.assert_array_equal(encoder.get_weights()[untouched], before[untouched])
    assert "transformer/layer_0/intermediate/kernel" not in partial.loaded


def test_mappings_of_arrays_in_any_scheme() -> None:
    encoder, other = small_encoder(), small_encoder(seed=8)
    named = {weight.name: weight.numpy().astype(np.float64) for weight in other.weights}
    report = encoder.load_weights(named)
    assert (report.format, report.scheme, report.prefix) == ("mapping", "keras", other.name)
    assert_unchanged(encoder, weights_of(other))


def test_one_of_two_encoders_is_chosen_by_prefix(tmp_path: Path) -> None:
    towers = {"query": small_encoder(seed=1), "document": small_encoder(seed=2)}
    arrays = {f"{tower}/{w.key}": w.numpy() for tower, encoder in towers.items() for w in encoder.weights}
    np.savez(tmp_path / "towers.npz", **arrays)
    encoder = small_encoder()
    with pytest.raises(CheckpointError, match=r"several encoders.*document, query"):
        encoder.load_weights(tmp_path / "towers.npz")
    encoder.load_weights(tmp_path / "towers.npz", prefix="document")
    assert_unchanged(encoder, weights_of(towers["document"]))


# Our own files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_save_and_load_keep_everything(tmp_path: Path, dtype: str) -> None:
    encoder = small_encoder(dtype=dtype, name="kept", inner_activation="relu", norm_first=True)
    path = tmp_path / "encoder.safetensors"
    encoder.save(path)
    loaded = SparseMixer.load(path)
    assert (loaded.name, loaded.dtype) == ("kept", dtype)
    assert loaded.get_config() == encoder.get_config()
    assert [weight.name for weight in loaded.weights] == [weight.name for weight in encoder.weights]
    assert_same_outputs(loaded(small_inputs()), encoder(small_inputs()))
    assert SparseMixer.load(path, dtype="float32", train_capacity_factor=0.5).dtype == "float32"
    assert os.listdir(tmp_path) == ["encoder.safetensors"]


def test_save_and_load_keep_the_papers_arguments(tmp_path: Path) -> None:
    encoder = small_encoder(
        semantics="paper",
        mixing_mechanism="circulant",
        router="tokens_choose",
        num_selected_experts=2,
        expert_inner_dim=20,
        pad_id=3,
        router_dtype="bfloat16",
        group_mixup=True,
    )
    encoder.save(tmp_path / "encoder.safetensors")
    loaded = SparseMixer.load(tmp_path / "encoder.safetensors")
    assert loaded.get_config() == encoder.get_config()
    assert_same_outputs(loaded(small_inputs()), encoder(small_inputs()))
    # Variables that TensorFlow's class does not have: it would load the others and say nothing.
    linear = {"semantics": "paper", "mixing_mechanism": "linear"}
    for refused, variable in [
        (encoder, "embedding_projection/kernel"),
        (small_encoder(mixing_mechanism="circulant"), "transformer/layer_0/circulant_transform"),
        (small_encoder(**linear), "embedding_projection/kernel"),
        (small_encoder(**linear, project_embeddings=False), "transformer/layer_1/output_layer_norm/gamma"),
        (small_encoder(moe_residual=True), "transformer/layer_1/output_layer_norm/gamma"),
        (
            small_encoder(expert_inner_dim=20),
            r"transformer/layer_1/moe/experts/intermediate/kernel of shape \[4, 16, 20\]",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"TensorFlow's encoder has no {variable}.*\.safetensors"):
            refused.save(tmp_path / "encoder.weights.h5")
    assert os.listdir(tmp_path) == ["encoder.safetensors"]


def test_other_tools_read_our_files(tmp_path: Path) -> None:
    encoder = small_encoder()
    encoder.save(tmp_path / "encoder.safetensors")
    encoder.save(tmp_path / "encoder.npz")
    by_safetensors = safetensors.numpy.load_file(tmp_path / "encoder.safetensors")
    by_numpy = dict(np.load(tmp_path / "encoder.npz"))
    for weight in encoder.weights:
        np.testing.assert_array_equal(by_safetensors[weight.key], weight.numpy())
        np.testing.assert_array_equal(by_numpy[weight.key], weight.numpy())
    # And theirs are read by us: compressed, in Fortran order, in half precision.
    odd = {name: np.asfortranarray(array.astype(np.float16)) for name, array in by_numpy.items()}
    np.savez_compressed(tmp_path / "odd.npz", **odd)
    safetensors.numpy.save_file({name: a.copy("C") for name, a in odd.items()}, tmp_path / "odd.safetensors")
    for name in ("odd.npz", "odd.safetensors"):
        other = small_encoder(seed=9)
        assert other.load_weights(tmp_path / name).complete
        for weight in other.weights:
            np.testing.assert_array_equal(weight.numpy(), odd[weight.key].astype(np.float32))


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".weights.h5"])
def test_saving_onto_the_loaded_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"encoder{ending}"
    encoder = small_encoder()
    expected = weights_of(encoder)
    for _ in range(5):
        encoder.save(path)
        encoder = SparseMixer.load(path, config=ARGUMENTS)
        assert_unchanged(encoder, expected)


@pytest.mark.parametrize(
    ("num_layers", "changes"),
    [
        (400, {"moe_layers": range(400), "attention_layers": range(400)}),
        (650, {"moe_layers": (), "attention_layers": ()}),
        (1500, {"moe_layers": (), "attention_layers": range(0, 1500, 2)}),
    ],
    ids=["400 of experts and attention", "650 dense", "1500 of both"],
)
def test_whatever_can_be_built_can_be_saved_and_loaded(
    tmp_path: Path, num_layers: int, changes: dict[str, Any]
) -> None:
    """Headers of more than a megabyte; the format allows a hundred."""
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "inner_dim": 4, "num_experts": 2, "embedding_width": 4}
    encoder = small_encoder(**sizes, num_layers=num_layers, **changes)
    path = tmp_path / "deep.safetensors"
    encoder.save(path)
    with path.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") > 1 << 20
    loaded = SparseMixer.load(path)
    assert loaded.get_config() == encoder.get_config()
    assert_unchanged(loaded, weights_of(encoder))
    assert len(safetensors.numpy.load_file(path)) == len(encoder.weights)


def test_an_own_activation_is_no_data(tmp_path: Path) -> None:
    encoder = small_encoder(inner_activation=np.tanh)
    with pytest.raises(ValueError, match=r"callable.*\.npz"):
        encoder.save(tmp_path / "encoder.safetensors")
    encoder.save(tmp_path / "encoder.npz")
    loaded = SparseMixer.load(tmp_path / "encoder.npz", config={**ARGUMENTS, "inner_activation": np.tanh})
    assert_same_outputs(loaded(small_inputs()), encoder(small_inputs()))


def test_an_own_embedding_layer_replaces_the_word_table(tmp_path: Path) -> None:
    small_encoder().save(tmp_path / "full.npz")
    arrays = dict(np.load(tmp_path / "full.npz"))
    del arrays["word_embeddings/embeddings"]
    encoder = small_encoder(embedding_layer=lambda ids: np.zeros((*ids.shape, 16), np.float32), seed=3)
    assert encoder.load_weights(arrays).complete


def test_report_reads_well(config: dict[str, Any]) -> None:
    report = SparseMixer(**{**config, "num_layers": 2, "attention_layers": (1,)}).load_report(
        GOLDEN / "checkpoints" / "encoder" / "ckpt"
    )
    assert not report.complete
    text = str(report)
    assert "tensor_bundle" in text
    assert "and 13 more" in text
    assert "encoder/_transformer_layers/2" in text
    assert sparse_mixer.checkpoints.LoadReport is type(report)
