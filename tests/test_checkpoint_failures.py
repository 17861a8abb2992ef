"""Weight files that are damaged, hostile or of others, and full disks: a typed error, and nothing changes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_cases import GOLDEN, assert_unchanged, weights_of
from encoders import small_encoder
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer._core.arguments import declared

pytestmark = pytest.mark.usefixtures("no_frameworks")


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
        ([1], CheckpointError, "expected a JSON object"),
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
    for key in declared():
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
