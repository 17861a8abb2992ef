"""Saving and loading: every format, every failure, crashes and threads."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import sparse_mixer
from encoders import ARGUMENTS, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer._core.arguments import Arguments
from sparse_mixer.training import state as train_state

GOLDEN = Path(__file__).parent / "golden"
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
# `make crash` has 300.
KILLS = int(os.environ.get("SPARSE_MIXER_TEST_KILLS", "12"))


@pytest.fixture
def config() -> dict[str, Any]:
    """Arguments of the encoder in ``golden/checkpoints``."""
    arguments: dict[str, Any] = json.loads((GOLDEN / "checkpoints" / "config.json").read_text())
    return arguments


@pytest.fixture(autouse=True)
def no_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing TensorFlow or JAX fails, as where they are not installed."""
    for module in ["tensorflow", "tf_keras", "keras", "jax", "flax", "torch", "transformers"]:
        monkeypatch.setitem(sys.modules, module, None)


def weights_of(encoder: SparseMixer) -> list[np.ndarray[Any, Any]]:
    return encoder.get_weights()


def assert_unchanged(encoder: SparseMixer, before: list[np.ndarray[Any, Any]]) -> None:
    for now, then in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


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


# Failures ---------------------------------------------------------------------------------------------------------


def test_nothing_changes_when_loading_fails(tmp_path: Path) -> None:
    encoder = small_encoder(seed=1)
    before = weights_of(encoder)
    small_encoder(seed=2).save(tmp_path / "good.safetensors")
    small_encoder(seed=2).save(tmp_path / "good.npz")
    small_encoder(seed=2).save(tmp_path / "good.weights.h5")
    for good in list(tmp_path.iterdir()):
        content = good.read_bytes()
        bad = tmp_path / f"bad{''.join(good.suffixes)}"
        for percent in range(0, 100, 7):
            bad.write_bytes(content[: len(content) * percent // 100])
            with pytest.raises((CheckpointError, OSError)):
                encoder.load_weights(bad)
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        bad.write_bytes(flipped)
        if good.suffix != ".h5":  # HDF5 as Keras writes it has no checksums
            with pytest.raises(CheckpointError, match="checksum"):
                encoder.load_weights(bad)
    small_encoder(inner_dim=24).save(tmp_path / "other.npz")
    with pytest.raises(CheckpointError, match=r"expected \[16, 32\], .* has \[16, 24\]"):
        encoder.load_weights(tmp_path / "other.npz")
    small_encoder(num_layers=4).save(tmp_path / "deeper.npz")
    with pytest.raises(CheckpointError, match="unexpected: transformer/layer_3"):
        encoder.load_weights(tmp_path / "deeper.npz")
    integers = {weight.key: weight.numpy().astype(np.int32) for weight in encoder.weights}
    with pytest.raises(CheckpointError, match="has int32"):
        encoder.load_weights(integers)
    with pytest.raises(CheckpointError, match="none of the encoder's weights"):
        encoder.load_weights({"unrelated": np.zeros(3)}, strict=False)
    with pytest.raises(FileNotFoundError):
        encoder.load_weights(tmp_path / "absent.safetensors")
    assert_unchanged(encoder, before)


def test_damaged_hdf5_files_raise_one_kind_of_error(tmp_path: Path, config: dict[str, Any]) -> None:
    encoder = SparseMixer(**config)
    generator = random.Random(5)
    for name in ("encoder.weights.h5", "legacy.h5"):
        content = (GOLDEN / "checkpoints" / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(generator.randint(1, 20)):
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            path = tmp_path / name
            path.write_bytes(damaged)
            # Many flips hit padding or numbers: any outcome but another exception, or a crash, will do.
            with contextlib.suppress(CheckpointError, OSError):
                encoder.load_weights(path)


def test_files_that_could_run_code_or_reach_elsewhere_are_refused(tmp_path: Path) -> None:
    import h5py

    encoder = small_encoder()
    pickled = tmp_path / "model.bin"
    pickled.write_bytes(b"\x80\x02cos\nsystem\nU\x04true\x85R.")
    with pytest.raises(CheckpointError, match="pickle"):
        encoder.load_weights(pickled)
    with zipfile.ZipFile(tmp_path / "torch.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled.read_bytes())
    with pytest.raises(CheckpointError, match="PyTorch"):
        encoder.load_weights(tmp_path / "torch.pt")
    np.savez(tmp_path / "objects.npz", **{w.key: np.array([print], object) for w in encoder.weights})
    with pytest.raises(CheckpointError, match="do not fit"):
        encoder.load_weights(tmp_path / "objects.npz")

    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros(3)
    for kind in ("soft", "external", "virtual", "raw"):
        path = tmp_path / f"{kind}.h5"
        with h5py.File(path, "w") as file:
            if kind == "soft":
                file["x"] = h5py.SoftLink("/elsewhere")
            elif kind == "external":
                file["x"] = h5py.ExternalLink(str(secret), "x")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((3,), float)
                layout[:] = h5py.VirtualSource(str(secret), "x", (3,))
                file.create_virtual_dataset("x", layout)
            else:
                file.create_dataset("x", (3,), float, external=[(str(tmp_path / "pickled"), 0, 24)])
        with pytest.raises(CheckpointError, match=r"another (place|file)"):
            encoder.load_weights(path)


def test_configurations_are_data(tmp_path: Path) -> None:
    encoder = small_encoder()
    encoder.save(tmp_path / "encoder.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "encoder.safetensors")
    for config, error, message in [
        ({"inner_activation": "os.system"}, CheckpointError, "changed.safetensors: .*inner_activation"),
        ({"class_name": "Lambda"}, CheckpointError, "unknown arguments 'class_name'"),
        ({"num_layers": 2.7}, CheckpointError, "num_layers: expected an integer, got 2.7"),
        ([1], CheckpointError, "not a mapping"),
    ]:
        text = json.dumps({**encoder.get_config(), **config} if isinstance(config, dict) else config)
        path = tmp_path / "changed.safetensors"
        safetensors.numpy.save_file(tensors, path, metadata={"config": text})
        with pytest.raises(error, match=message):
            SparseMixer.load(path)
    # What the caller says is not the file's fault.
    with pytest.raises(TypeError, match="num_heads"):
        SparseMixer.load(tmp_path / "encoder.safetensors", num_heads=2)
    safetensors.numpy.save_file(tensors, path, metadata={"config": "[" * 100_000})
    with pytest.raises(CheckpointError, match="not JSON"):
        SparseMixer.load(path)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="without a configuration"):
        SparseMixer.load(path)


def test_any_value_in_a_stored_configuration_loads_or_is_refused(tmp_path: Path) -> None:
    encoder = small_encoder(semantics="paper", max_group_size=8, pad_id=0)
    encoder.save(tmp_path / "encoder.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "encoder.safetensors")
    path = tmp_path / "changed.safetensors"
    numbers = [-1, 0, 2.7, 1e400, 10**400, 2**31, 2**40, 2**62, 2**63, -(2**63), 10**9, 5_000_000]
    values = [
        None,
        True,
        "x",
        "",
        [],
        {},
        [[1]],
        {"a": 1},
        {"class_name": "Constant", "config": {"value": []}},
        *numbers,
    ]
    for key in Arguments.__dataclass_fields__:
        for value in values:
            text = json.dumps({**encoder.get_config(), key: value})
            safetensors.numpy.save_file(tensors, path, metadata={"config": text})
            refusal = str(path)
            try:
                SparseMixer.load(path)
            except CheckpointError as error:
                refusal = str(error)
            assert str(path) in refusal, (key, value)


def test_bad_targets(tmp_path: Path) -> None:
    encoder = small_encoder()
    with pytest.raises(ValueError, match="not written"):
        encoder.save(tmp_path / "encoder.h5")
    with pytest.raises(ValueError, match="file_format"):
        encoder.save(tmp_path / "encoder", file_format="pickle")
    for ending in (".safetensors", ".npz", ".weights.h5"):
        with pytest.raises(OSError, match="No such file"):
            encoder.save(tmp_path / "absent" / f"encoder{ending}")
    with pytest.raises(OSError, match="folder"):
        encoder.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "encoder.safetensors"
    small_encoder(seed=1).save(path)
    content = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            small_encoder(seed=2).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


# Crashes and threads ----------------------------------------------------------------------------------------------

_SAVED = {
    "vocab_size": 20_000,
    "hidden_size": 64,
    "num_layers": 2,
    "moe_layers": (),
    "attention_layers": (),
    "inner_dim": 128,
    "max_sequence_length": 16,
}
_SAVER = f"""
import sys, pathlib, sparse_mixer
from sparse_mixer.training import state as train_state
path = sys.argv[1]
encoders = [
    sparse_mixer.SparseMixer(**{_SAVED}, initializer={{"class_name": "Constant", "config": {{"value": value}}}})
    for value in (1.0, 2.0)
]
print("ready", flush=True)
while True:
    for encoder in encoders:
        if path.endswith(".state"):
            train_state.save(pathlib.Path(path), {{}}, {{w.key: w.numpy() for w in encoder.weights}})
        else:
            encoder.save(path)
"""


def saved_weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights in a file of `_SAVER`."""
    if path.suffix == ".state":
        return train_state.load(path)[1]
    config = None if path.suffix == ".safetensors" else _SAVED
    return {weight.key: weight.numpy() for weight in SparseMixer.load(path, config=config).weights}


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".weights.h5", ".state"])
def test_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"encoder{ending}"
    generator = random.Random(11)
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", _SAVER, path], stdout=subprocess.PIPE) as saver:
            assert saver.stdout is not None
            saver.stdout.readline()
            while not path.exists():
                time.sleep(0.001)
            time.sleep(generator.random() * 0.1)
            saver.kill()
        values = {float(array.flat[0]) for key, array in saved_weights(path).items() if key.endswith("kernel")}
        assert values in ({1.0}, {2.0})
    if ending == ".state":
        train_state.save(path, {}, {})
    else:
        small_encoder().save(path)
    assert os.listdir(tmp_path) == [path.name], "the next save removes what killed ones left behind"


def test_a_file_holds_the_weights_of_one_moment(tmp_path: Path) -> None:
    encoder = small_encoder()
    stop = threading.Event()
    constant = [[np.full(w.shape, value, np.float32) for w in encoder.weights] for value in (1.0, 2.0)]
    encoder.set_weights(constant[0])

    def write() -> None:
        while not stop.is_set():
            for weights in constant:
                encoder.set_weights(weights)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(30):
            path = tmp_path / f"{number % 2}.npz"
            encoder.save(path)
            assert len({float(array.flat[0]) for array in np.load(path).values()}) == 1
            encoder.load_weights(path)
    finally:
        stop.set()
        writer.join()


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
