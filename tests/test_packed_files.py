"""Packed files: weights as the core keeps them, mapped rather than read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer.cli import main
from sparse_mixer.optimizers import SGD

DTYPES = ["float32", "bfloat16", "float16", "int8"]
# Every form of weight; large enough for its file to be mapped in each type.
ARGUMENTS: dict[str, Any] = {
    "vocab_size": 3000,
    "hidden_size": 160,
    "embedding_width": 72,
    "num_layers": 3,
    "moe_layers": (1,),
    "attention_layers": (2,),
    "num_experts": 4,
    "inner_dim": 400,
    "num_attention_heads": 4,
    "max_sequence_length": 16,
    "seed": 1,
}
INPUTS = {
    "input_word_ids": np.random.default_rng(0).integers(0, 3000, (2, 16), dtype=np.int32),
    "input_mask": np.ones((2, 16), np.int32),
    "input_type_ids": np.zeros((2, 16), np.int32),
}


def outputs(encoder: SparseMixer) -> bytes:
    return encoder(INPUTS)["sequence_output"].tobytes()


def same_weights(one: SparseMixer, other: SparseMixer) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


@pytest.fixture(scope="module")
def encoder() -> SparseMixer:
    return SparseMixer(**ARGUMENTS)


@pytest.fixture(scope="module")
def packed(encoder: SparseMixer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    for dtype in DTYPES:
        encoder.astype(dtype).save(folder / dtype, packed=True)
    return {dtype: folder / dtype for dtype in DTYPES}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_file_is_the_encoder_and_stays_where_it_is(
    encoder: SparseMixer, packed: dict[str, Path], dtype: str
) -> None:
    expected = encoder.astype(dtype)
    loaded = SparseMixer.load(packed[dtype])
    assert loaded.get_config() == expected.get_config()
    assert outputs(loaded) == outputs(expected)
    assert same_weights(loaded, expected)
    # All but vectors (and nothing of an encoder that has them in memory).
    assert 0.97 * loaded.core.weight_bytes < loaded.core.mapped_bytes < loaded.core.weight_bytes
    assert expected.core.mapped_bytes == 0
    # Another type, and an encoder that stands already.
    other = "float32" if dtype != "float32" else "bfloat16"
    assert same_weights(SparseMixer.load(packed[dtype], dtype=other), expected.astype(other))
    standing = SparseMixer(**{**ARGUMENTS, "seed": 2})
    report = standing.load_weights(packed[dtype])
    assert report.complete
    assert same_weights(standing, expected.astype("float32"))


def test_files_have_the_size_of_their_type(packed: dict[str, Path]) -> None:
    sizes = {dtype: packed[dtype].stat().st_size for dtype in DTYPES}
    assert 0.48 < sizes["bfloat16"] / sizes["float32"] < 0.65
    assert sizes["float16"] <= sizes["bfloat16"]
    # The word table stays in bfloat16.
    assert sizes["int8"] < 0.8 * sizes["bfloat16"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_and_assigning_leave_the_file_alone(packed: dict[str, Path], dtype: str) -> None:
    before = packed[dtype].read_bytes()
    one, other = SparseMixer.load(packed[dtype]), SparseMixer.load(packed[dtype])
    expected = outputs(other)
    results, vjp = one.vjp(INPUTS, outputs=("sequence_output",))
    SGD(0.5).apply_gradients(one, vjp({"sequence_output": results["sequence_output"]}))
    assert outputs(one) != expected
    assert one.core.mapped_bytes < other.core.mapped_bytes
    mapped = other.core.mapped_bytes
    table = np.zeros((3000, 72), np.float32)
    third = SparseMixer.load(packed[dtype])
    third.set_weights([table, *third.get_weights()[1:]])
    assert third.core.mapped_bytes == 0
    third = SparseMixer.load(packed[dtype])
    third.variables[0].assign(table)
    assert 0 < third.core.mapped_bytes < mapped
    assert outputs(other) == expected
    assert packed[dtype].read_bytes() == before


def test_files_may_be_replaced_and_removed_while_they_are_mapped(
    encoder: SparseMixer, packed: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.write_bytes(packed["float32"].read_bytes())
    loaded = SparseMixer.load(path)
    encoder.astype("int8").save(path, packed=True)
    loaded.save(path, packed=True)
    path.unlink()
    assert outputs(loaded) == outputs(encoder)


def test_only_our_own_format_is_packed(encoder: SparseMixer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="packed: only our own format"):
        encoder.save(tmp_path / "weights.npz", packed=True)
    with pytest.raises(TypeError, match="packed"):
        encoder.save(tmp_path / "weights", packed="yes")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_verify_finds_damage_that_loading_passes_over(
    packed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(packed["int8"])]) == 0
    content = bytearray(packed["int8"].read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "damaged").write_bytes(content)
    SparseMixer.load(tmp_path / "damaged")
    assert main(["verify", str(tmp_path / "damaged")]) == 1
    assert "does not match its checksum" in capsys.readouterr().out
    (tmp_path / "short").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="damaged or not complete"):
        SparseMixer.load(tmp_path / "short")


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """The file as another tool writes it, without checksums; `change` gets the metadata and the tensors."""
    content = source.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    metadata = {key: text for key, text in metadata.items() if "crc32c" not in key and key != "format"}
    tensors = safetensors.numpy.load_file(source)
    change(metadata, tensors)
    safetensors.numpy.save_file(tensors, target, metadata)
    return target


KERNEL = "transformer/layer_0/intermediate/kernel"


def described(**changes: Any) -> Any:
    def change(metadata: dict[str, str], tensors: dict[str, Any]) -> None:
        metadata[f"packed:{KERNEL}"] = json.dumps(json.loads(metadata[f"packed:{KERNEL}"]) | changes)

    return change


HOSTILE: dict[str, tuple[Any, str]] = {
    "another layout": (lambda metadata, _: metadata.update(packed_layout="2"), "have layout 2.*write the file again"),
    "no JSON": (lambda metadata, _: metadata.update({f"packed:{KERNEL}": "{"}), f"{KERNEL}: .*is damaged"),
    "an unknown type": (described(dtype="int4"), f"{KERNEL}: .*unknown type"),
    "a wider matrix": (described(shape=[160, 4000], matrices=[1, 160, 4000]), "does not fit its bytes"),
    "an overflow": (described(shape=[2**62, 4], matrices=[2**32, 2**32, 2**32]), "shape"),
    "no rows": (described(shape=[0, 400], matrices=[1, 0, 400]), "does not fit its shape"),
    "another shape": (described(shape=[160, 399]), "does not fit its shape"),
    "both forms": (described(table=[160, 400]), "neither"),
    "an unknown key": (described(more=1), "is damaged"),
    "no such tensor": (lambda metadata, _: metadata.update({"packed:x": "{}"}), "no tensor called 'x'"),
    "short bytes": (lambda _, tensors: tensors.update({KERNEL: tensors[KERNEL][:-4096]}), "does not fit its bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions_are_clear_errors(packed: dict[str, Path], tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    path = rewritten(packed["float32"], tmp_path / "hostile.safetensors", change)
    with pytest.raises(CheckpointError, match=rf"hostile.safetensors.*{message}"):
        SparseMixer.load(path)


def test_other_forms_and_places_are_read_as_well(encoder: SparseMixer, packed: dict[str, Path], tmp_path: Path) -> None:
    """Another tool has moved the tensors: they are copied. A kernel may be a table of the same numbers."""
    moved = SparseMixer.load(rewritten(packed["bfloat16"], tmp_path / "moved.safetensors", lambda *_: None))
    assert outputs(moved) == outputs(encoder.astype("bfloat16"))

    def plain(metadata: dict[str, str], tensors: dict[str, Any]) -> None:
        rows = encoder.get_weights()[[name for name, _ in encoder.core.weight_specs()].index(KERNEL)]
        stored = np.frombuffer(rows.tobytes(), np.uint8)
        tensors[KERNEL] = np.concatenate([stored, np.zeros(-len(stored) % 4096, np.uint8)])
        description = {"shape": list(rows.shape), "dtype": "float32", "table": list(rows.shape)}
        metadata[f"packed:{KERNEL}"] = json.dumps(description)

    table = SparseMixer.load(rewritten(packed["float32"], tmp_path / "table.safetensors", plain))
    assert outputs(table) == outputs(encoder)


def test_a_smaller_encoder_takes_the_first_positions_of_a_packed_one(packed: dict[str, Path]) -> None:
    arguments = {**ARGUMENTS, "attention_layers": (0, 1, 2), "moe_layers": ()}
    bert = SparseMixer(**arguments, shorter_sequences=True)
    path = packed["float32"].with_name("bert")
    bert.save(path, packed=True)
    small = SparseMixer.load(path, max_sequence_length=8)
    inputs = {name: rows[:, :8] for name, rows in INPUTS.items()}
    expected = bert(inputs)["sequence_output"]
    np.testing.assert_array_equal(small(inputs)["sequence_output"], expected)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_processes_share_the_pages(packed: dict[str, Path]) -> None:
    """The file's pages count by half in each of two processes that have read all of them."""
    program = (
        "import sys; from sparse_mixer import SparseMixer\n"
        "encoder = SparseMixer.load(sys.argv[1]); encoder.get_weights()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "lines = open('/proc/self/smaps').read().split(sys.argv[1])[1].splitlines()\n"
        "print({line.split()[0]: int(line.split()[1]) for line in lines if line.endswith(' kB')}['Pss:'])"
    )
    command = [sys.executable, "-c", program, str(packed["float32"])]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": os.environ}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    # Both have the pages while the first looks.
    answer, _ = processes[0].communicate("look\n")
    processes[1].communicate("look\n")
    assert int(answer) * 1024 < 0.6 * packed["float32"].stat().st_size
