"""The command ``sparse-mixer``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from encoders import ARGUMENTS, small_encoder
from sparse_mixer import SparseMixer, cli

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved encoder."""
    path = tmp_path / "encoder.safetensors"
    small_encoder().save(path)
    return path


def test_inspect_lists_names_shapes_types_and_sizes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(saved)]) == cli.EXIT_OK
    text = capsys.readouterr().out
    assert "safetensors, 43 tensors, 38.7 kB" in text
    assert "format_version: 1" in text
    line = next(line for line in text.splitlines() if line.startswith("transformer/layer_1/moe/experts/output/bias"))
    assert line.split()[1:] == ["float32", "[4,", "1,", "16]", "256", "B"]
    assert cli.main(["inspect", "--json", str(GOLDEN / "saved_model")]) == cli.EXIT_OK
    assert json.loads(capsys.readouterr().out)["format"] == "tensor_bundle"


def test_verify_finds_damage_and_numbers_that_are_not_finite(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(saved)]) == cli.EXIT_OK
    assert "0 problems" in capsys.readouterr().out
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


def test_bench_and_doctor(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(saved), "--repeats", "2", "--threads", "1", "--dtype", "bfloat16"]) == cli.EXIT_OK
    assert "tokens/s" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == cli.EXIT_OK
    assert "cpu.isa" in json.loads(capsys.readouterr().out)


def test_exit_codes(tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "absent")]) == cli.EXIT_USAGE
    assert "absent" in capsys.readouterr().err
    assert cli.main(["bench", str(saved), "--batch", "0"]) == cli.EXIT_USAGE
    assert cli.main(["convert", str(saved), str(tmp_path / "x.npz"), "--config", "[]"]) == cli.EXIT_USAGE
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["inspect"])
    assert exit_info.value.code == cli.EXIT_USAGE
    for command in ([], ["inspect"], ["verify"], ["convert"], ["bench"], ["doctor"]):
        with pytest.raises(SystemExit) as exit_info:
            cli.main([*command, "--help"])
        assert exit_info.value.code == cli.EXIT_OK
        assert "exit codes" in capsys.readouterr().out
