"""Numbers that a storage type cannot hold stay visible: as NaN or infinity in the weights, and by a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import SparseMixer

KERNEL = "transformer/layer_0/intermediate/kernel"
TABLE = "word_embeddings/embeddings"


def weight(encoder: SparseMixer, key: str) -> Any:
    return next(variable for variable in encoder.weights if variable.key == key)


def spoilt(key: str, value: float, **arguments: Any) -> SparseMixer:
    """An encoder of which one weight has one number `value`."""
    encoder = small_encoder(**arguments)
    values = weight(encoder, key).numpy()
    values[1, 2] = value
    weight(encoder, key).assign(values)
    return encoder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", [KERNEL, TABLE])
def test_what_is_not_finite_stays_so(key: str, value: float, dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Nothing overflows here.
        encoder = spoilt(key, value).astype(dtype)
    stored = weight(encoder, key).numpy()
    assert not np.isfinite(stored[1, 2])
    assert np.isfinite(np.delete(stored, 2, axis=1)).all(), "other columns are as before"
    inputs = small_inputs()
    inputs["input_word_ids"][0, 0] = 1
    with pytest.raises(ValueError, match="finite"):
        encoder(inputs, check_finite=True)


@pytest.mark.parametrize("key", [KERNEL, TABLE])
def test_numbers_beyond_float16_warn(key: str, tmp_path: Path) -> None:
    encoder = spoilt(key, 7e4)
    encoder.save(tmp_path / "encoder.safetensors")
    half = small_encoder(dtype="float16")
    values = weight(encoder, key).numpy()
    for name, convert in {
        "astype": lambda: encoder.astype("float16"),
        "load": lambda: SparseMixer.load(tmp_path / "encoder.safetensors", dtype="float16"),
        "load_weights": lambda: half.load_weights(tmp_path / "encoder.safetensors"),
        "set_weights": lambda: half.set_weights(encoder.get_weights()),
        "assign": lambda: weight(half, key).assign(values),
    }.items():
        with pytest.warns(UserWarning, match=f"float16 ends at 65504.* infinite in {key};") as caught:
            convert()
        assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name], name


def test_what_float16_holds_does_not_warn(tmp_path: Path) -> None:
    encoder = spoilt(KERNEL, 65504.0)
    encoder.save(tmp_path / "encoder.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = encoder.astype("float16")
        half.set_weights(encoder.get_weights())
        SparseMixer.load(tmp_path / "encoder.safetensors", dtype="float16")
        spoilt(KERNEL, 7e4).astype("bfloat16")
        # Biases and layer norms are never rounded.
        bias = next(variable for variable in half.weights if variable.key.endswith("bias"))
        bias.assign(np.full(bias.shape, 7e4, np.float32))
