"""What is found in the place of weights is called by its name, with what to do about it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from encoders import small_encoder
from sparse_mixer import CheckpointError, SparseMixer, models

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        about = tarfile.TarInfo(name)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return file.getvalue()


# Content, and what the error says of it and advises.
CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "the file is empty.*get it again"),
    "Git LFS": (lambda: LFS, "Git LFS pointer.*git lfs pull"),
    "HTML": (lambda: b"<!DOCTYPE html>\n<html><title>Sign in</title>", "HTML page.*download the file itself"),
    "XML": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML document.*download"),
    "JSON": (lambda: json.dumps({"model_type": "bert"}).encode(), "JSON text, not weights.*folder"),
    "PyTorch": (lambda: zipped("archive/data.pkl", b"\x80\x02."), "PyTorch.*any code.*convert it to safetensors"),
    "older PyTorch": (lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2), "pickle.*PyTorch.*convert it to safetensors"),
    "ZIP": (lambda: zipped("model/weights.h5", b"x"), "unpack it"),
    "tar": (lambda: tarred("model.safetensors", b"x"), "archive; unpack it"),
    "gzip": (lambda: gzip.compress(b"x"), "archive; unpack it"),
}
NAMES = ["m.safetensors", "m.npz", "m.msgpack", "m.weights.h5", "m.index", "replicated_checkpoint_1"]


@pytest.mark.parametrize("name", [*NAMES, "folder"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_other_files_are_called_by_name(tmp_path: Path, kind: str, name: str) -> None:
    make, message = CONTENTS[kind]
    given = path = tmp_path / name
    if name == "folder":
        path.mkdir()
        path /= "model.safetensors"
    path.write_bytes(make())
    encoder = small_encoder()
    for load in (encoder.load_weights, SparseMixer.load, models.BertClassifier.load):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(given)
        assert len(str(caught.value)) < 400 + len(str(path))


def test_pointers_in_the_place_of_parts_are_called_by_name(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "checkpoints" / "encoder"
    (tmp_path / "ckpt.index").write_bytes((golden / "ckpt.index").read_bytes())
    (tmp_path / "ckpt.data-00000-of-00001").write_bytes(LFS)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        small_encoder().load_weights(tmp_path / "ckpt")
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in (1, 2):
        (shards / f"model-0000{number}-of-00002.safetensors").write_bytes(LFS)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        small_encoder().load_weights(shards)


@pytest.mark.parametrize("file", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "3/default/_METADATA"])
def test_orbax_folders_are_called_by_name(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"Orbax checkpoint.*SparseMixer\.from_flax"):
        small_encoder().load_weights(tmp_path)


@pytest.mark.parametrize("stem", ["model", "encoder.fp16"])
def test_the_index_of_several_files_stands_for_them(tmp_path: Path, stem: str) -> None:
    encoder = small_encoder(seed=5)
    weights = {weight.key: weight.numpy() for weight in encoder.weights}
    index = tmp_path / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "elsewhere")}))
    with pytest.raises(CheckpointError, match=rf"index of a model in several files {stem}-\*-of-\*.safetensors"):
        small_encoder().load_weights(index)
    names = list(weights)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = tmp_path / f"{stem}-0000{number}-of-00002.safetensors"
        safetensors.numpy.save_file({name: weights[name] for name in part}, file)
    other = small_encoder(seed=6)
    assert other.load_weights(index).complete
    for weight in other.weights:
        np.testing.assert_array_equal(weight.numpy(), weights[weight.key])


def test_a_folder_whose_configuration_is_no_models(tmp_path: Path) -> None:
    encoder = small_encoder()
    encoder.save(tmp_path / "model.npz")
    arrays: dict[str, Any] = dict(np.load(tmp_path / "model.npz"))
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(encoder.get_config()))
    with pytest.raises(CheckpointError, match=r"config\.json: there is no 'model_type'.*config=json\.load"):
        SparseMixer.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert SparseMixer.load(tmp_path, config=config).get_config() == encoder.get_config()
    # Beside a file that is given by its own name, another program's configuration says nothing.
    with pytest.raises(ValueError, match="without a configuration"):
        SparseMixer.load(tmp_path / "model.safetensors")


def test_paths_may_be_bytes_and_nothing_else(tmp_path: Path) -> None:
    encoder = small_encoder()
    for ending in (".safetensors", ".npz", ".weights.h5"):
        path = str(tmp_path / f"m{ending}").encode()
        encoder.save(path)
        assert encoder.load_weights(path).complete
    assert SparseMixer.load(str(tmp_path / "m.safetensors").encode()).get_config() == encoder.get_config()
    model = models.BertClassifier(encoder, num_classes=2)
    model.save(str(tmp_path / "model.safetensors").encode())
    assert isinstance(models.BertClassifier.load(str(tmp_path / "model.safetensors").encode()), models.BertClassifier)
    for wrong in (3, None, 2.5):
        for use in (encoder.save, model.save, SparseMixer.load):
            with pytest.raises(TypeError, match=r"(path|source): expected str, bytes or os.PathLike, got"):
                use(wrong)  # type: ignore[operator]


def test_advice_on_endings_can_be_followed(tmp_path: Path) -> None:
    keras, paper = small_encoder(), small_encoder(semantics="paper", mixing_mechanism="circulant")
    model = models.BertClassifier(keras, num_classes=2)
    for thing, endings in [
        (keras, [".safetensors", ".npz", ".weights.h5"]),
        (paper, [".safetensors", ".npz"]),
        (model, [".safetensors", ".npz", ".weights.h5"]),
    ]:
        for bad in (".h5", ".keras", ".pt", ".bin", ".msgpack"):
            with pytest.raises(ValueError, match="not written here; use") as caught:
                thing.save(tmp_path / f"m{bad}")
            advised = str(caught.value).split("use ")[1].replace(" or ", ", ").split(", ")
            assert advised == endings
        for ending in endings:
            thing.save(tmp_path / f"m{ending}")
    of_paper = models.BertClassifier(small_encoder(semantics="paper"), num_classes=2)
    with pytest.raises(ValueError, match=r"save as \.safetensors or \.npz instead"):
        of_paper.save(tmp_path / "paper.weights.h5")
    assert not (tmp_path / "paper.weights.h5").exists()
