"""The command ``sparse-mixer``."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from encoders import ARGUMENTS, small_encoder
from sparse_mixer import InternalError, SparseMixer, cli

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved encoder."""
    path = tmp_path / "encoder.safetensors"
    small_encoder().save(path)
    return path


def test_inspect_shows_names_shapes_types_and_sizes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(saved)]) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "safetensors, 43 tensors, 38.7 kB" in text
    assert "format_version: 1" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    experts = lines.index("experts/ (4 tensors) 17.2 kB")
    layers = [line for line in lines if line.startswith("layer_") and line.endswith("kB")]
    assert [line.split()[0] for line in layers] == ["layer_0/", "layer_1/", "layer_2/"]
    assert lines.index(layers[1]) < experts < lines.index(layers[2])
    assert lines[experts + 6] == "bias float32 [4, 1, 16] 256 B"
    assert "router/router_weights/ (2 tensors) 272 B" in lines, "folders with one entry share a line"
    assert cli.main(["inspect", "--json", str(GOLDEN / "saved_model")]) == cli.EXIT_OK
    assert json.loads(capsys.readouterr().out)["format"] == "tensor_bundle"


def test_verify_finds_damage_and_numbers_that_are_not_finite(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(saved)]) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "checksums: checked" in text
    assert "43 weights fit" in text
    assert "0 problems" in text
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    assert cli.main(["verify", str(saved)]) == cli.EXIT_PROBLEM
    assert "pooler_transform/bias: the content does not match its checksum" in capsys.readouterr().out

    encoder = small_encoder()
    weights = encoder.get_weights()
    weights[4][3] = np.nan
    encoder.set_weights(weights)
    encoder.save(saved)
    assert cli.main(["verify", str(saved)]) == cli.EXIT_PROBLEM
    assert "embeddings/layer_norm/beta: 1 numbers are not finite" in capsys.readouterr().out


def test_verify_checks_the_fit_to_a_given_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "encoder.npz"
    small_encoder().save(path)
    assert cli.main(["verify", str(path)]) == cli.EXIT_OK
    assert "no configuration" in capsys.readouterr().out
    assert cli.main(["verify", str(path), "--config", json.dumps(ARGUMENTS)]) == cli.EXIT_OK
    (tmp_path / "config.json").write_text(json.dumps({**ARGUMENTS, "inner_dim": 16}))
    assert cli.main(["verify", str(path), "--config", str(tmp_path / "config.json")]) == cli.EXIT_PROBLEM
    assert "of another shape" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["encoder.weights.h5", "legacy.h5", "model.keras"])
def test_verify_reads_hdf5(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = GOLDEN / name
    if name == "model.keras":
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(GOLDEN / "encoder.weights.h5", "model.weights.h5")
    assert cli.main(["verify", str(path), "--config", str(GOLDEN / "config.json")]) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert ("checksums: checked" in text) == (name == "model.keras")
    assert "weights fit" in text
    assert "0 problems" in text


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.npz", "encoder.weights.h5"])
def test_verify_calls_damage_a_problem(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    small_encoder().save(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert cli.main(["verify", str(path)]) == cli.EXIT_PROBLEM
    text = capsys.readouterr().out
    assert f"problem: {path}: " in text
    assert "1 problems" in text


def test_verify_calls_a_configuration_that_cannot_be_a_problem(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = safetensors.numpy.load_file(saved)
    config = {**small_encoder().get_config(), "num_layers": 5_000_000}
    safetensors.numpy.save_file(tensors, saved, metadata={"config": json.dumps(config)})
    assert cli.main(["verify", str(saved)]) == cli.EXIT_PROBLEM
    text = capsys.readouterr().out
    assert "checksums: there are none in this file" in text
    assert "43 tensors are too few for 5000000 layers" in text


@pytest.mark.parametrize("target", ["encoder.npz", "encoder.weights.h5", "encoder.safetensors"])
def test_convert(tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / target
    source, config = GOLDEN / "functional", GOLDEN / "config.json"
    assert cli.main(["convert", str(source), str(path), "--config", str(config)]) == cli.EXIT_OK
    assert target in capsys.readouterr().out
    arguments = json.loads(config.read_text())
    by_name = {w.key: w.numpy() for w in SparseMixer.load(path, config=arguments).weights}
    for name, array in np.load(GOLDEN / "weights.npz").items():
        np.testing.assert_array_equal(by_name[name], array)


def test_convert_from_the_jax_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = GOLDEN.parent / "jax" / "ckpt_linear_2_devices"
    with np.load(folder / "expected.npz") as expected:
        config = str(expected["config"])
        kernel = expected["params/encoder/pooler/kernel"]
    (tmp_path / "config.json").write_text(config)
    target = tmp_path / "encoder.safetensors"
    arguments = ["convert", str(folder), str(target), "--flax-config", str(tmp_path / "config.json")]
    settings = ["--set", "router_dtype=bfloat16", "--set", "eval_capacity_factor=0.5"]
    assert cli.main([*arguments, *settings]) == cli.EXIT_OK
    ignored = [line for line in capsys.readouterr().out.splitlines() if "no part of the encoder" in line]
    assert len(ignored) == 1
    assert "d_model" not in ignored[0]
    encoder = SparseMixer.load(target)
    assert (encoder.arguments.router_dtype, encoder.arguments.eval_capacity_factor) == ("bfloat16", 0.5)
    np.testing.assert_array_equal(encoder.pooler_layer.weights[0].numpy(), kernel)
    assert cli.main(["verify", str(folder), "--preset", "bert_base"]) == cli.EXIT_PROBLEM
    assert "do not fit" in capsys.readouterr().out
    assert cli.main(["convert", str(folder), str(target), "--set", "pad_id"]) == cli.EXIT_USAGE


def test_convert_with_a_preset(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "inner_dim": 24, "num_attention_heads": 2, "max_sequence_length": 8}
    encoder = SparseMixer.from_preset("fast_sparse_mixer_small", vocab_size=40, **sizes)
    encoder.save(tmp_path / "weights.npz")
    settings = [f"--set={name}={value}" for name, value in sizes.items()]
    source, target = str(tmp_path / "weights.npz"), str(tmp_path / "encoder.safetensors")
    assert cli.main(["convert", source, target, "--preset", "fast_sparse_mixer_small", *settings]) == cli.EXIT_OK
    assert SparseMixer.load(target).get_config() == encoder.get_config()


def test_bench_and_doctor(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(saved), "--repeats", "2", "--threads", "1", "--dtype", "bfloat16"]) == cli.EXIT_OK
    assert "tokens/s" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == cli.EXIT_OK
    assert "cpu.isa" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("error", "message"), [(MemoryError, "not enough memory"), (InternalError, "a bug")])
def test_failures_of_the_library_are_told_in_one_line(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("a bug") if error is InternalError else error

    monkeypatch.setattr(cli.command, "open_weights", fail)
    assert cli.main(["inspect", str(saved)]) == cli.EXIT_USAGE
    assert capsys.readouterr().err == f"sparse-mixer: {message}\n"


def test_exit_codes(tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "absent")]) == cli.EXIT_USAGE
    assert "absent" in capsys.readouterr().err
    assert cli.main(["bench", str(saved), "--batch", "0"]) == cli.EXIT_USAGE
    assert cli.main(["convert", str(saved), str(tmp_path / "x.npz"), "--config", "[]"]) == cli.EXIT_USAGE
    for command in ("verify", "bench"):
        for option in ("--config", "--flax-config"):
            for text in ("{", "[]", '{"vocab_size"}', str(tmp_path / "absent.json")):
                assert cli.main([command, str(saved), option, text]) == cli.EXIT_USAGE
                assert f"sparse-mixer: {option}: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["inspect"])
    assert exit_info.value.code == cli.EXIT_USAGE
    for command in ([], ["inspect"], ["verify"], ["convert"], ["bench"], ["doctor"], ["completion"]):
        with pytest.raises(SystemExit) as exit_info:
            cli.main([*command, "--help"])
        assert exit_info.value.code == cli.EXIT_OK
        assert "exit codes" in capsys.readouterr().out
