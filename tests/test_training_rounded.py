"""Training of encoders whose weights are stored in 16 bits: the optimiser keeps masters in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import models, optimizers
from training_cases import labelled

KERNEL = "transformer/layer_0/linear_transform/hidden_kernel"
TABLE = "word_embeddings/embeddings"
DTYPES = ["bfloat16", "float16"]


def ones(encoder: Any, *keys: str) -> dict[str, Any]:
    shapes = dict(encoder.core.weight_specs())
    return {key: np.ones(shapes[key], np.float32) for key in keys}


def weight(encoder: Any, key: str) -> Any:
    return next(variable for variable in encoder.weights if variable.key == key).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_stay_near_those_of_float32(dtype: str) -> None:
    # Without experts: a token that rounding sends to another one moves the loss of so small a model visibly.
    curves = []
    for one in ("float32", dtype):
        encoder = small_encoder(moe_layers=(), output_dropout=0.0).astype(one)
        model = models.BertClassifier(encoder, 2, dropout_rate=0.0, seed=1)
        history = model.fit(
            labelled(), optimizer=optimizers.AdamW(3e-3), epochs=40, batch_size=8, progress=False, seed=0
        )
        curves.append(np.array(history.history["task_loss"]))
    wanted, got = curves
    assert wanted[-1] < 0.5 * wanted[0]
    np.testing.assert_allclose(got, wanted, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_point_where_those_of_float32_do(dtype: str) -> None:
    def gradients(one: str) -> Any:
        encoder = small_encoder(moe_layers=(), output_dropout=0.0).astype(one)
        outputs, vjp = encoder.vjp(small_inputs(), training=True, seed=1)
        return vjp({"sequence_output": np.cos(np.arange(outputs["sequence_output"].size)).reshape(2, 8, 16)})

    wanted, got = gradients("float32"), gradients(dtype)
    for key, g in wanted.items():
        if not key.startswith("pooler") and not key.endswith("key/bias"):  # zero, the bias but for rounding
            cosine = (g * got[key]).sum() / np.linalg.norm(g) / np.linalg.norm(got[key])
            assert cosine > 0.999, key


@pytest.mark.parametrize("key", [KERNEL, TABLE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_below_the_resolution_add_up(dtype: str, key: str) -> None:
    encoder = small_encoder().astype(dtype)
    twin = encoder.astype("float32")
    before = weight(encoder, key)
    optimizer, other = optimizers.SGD(4e-6), optimizers.SGD(4e-6)
    for _ in range(500):
        optimizer.apply_gradients(encoder, ones(encoder, key))
        other.apply_gradients(twin, ones(twin, key))
    master = optimizer.get_state()[1][f"{key}/master"]
    np.testing.assert_array_equal(master, weight(twin, key))
    resolution = np.abs(master) * (2.0**-8 if dtype == "bfloat16" else 2.0**-11) + 1e-7
    assert (np.abs(weight(encoder, key) - master) <= resolution).all()
    large = np.abs(before) > 0.03
    assert large.any()
    assert (weight(encoder, key)[large] != before[large]).mean() > 0.9


def test_one_update_below_the_resolution_leaves_the_weights() -> None:
    encoder = small_encoder().astype("bfloat16")
    before = encoder.get_weights()
    optimizers.SGD(1e-9).apply_gradients(encoder, ones(encoder, KERNEL))
    large = np.abs(before[0]) > 1e-3
    np.testing.assert_array_equal(encoder.get_weights()[0][large], before[0][large])


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_set_between_updates_count(dtype: str) -> None:
    encoder = small_encoder().astype(dtype)
    optimizer = optimizers.SGD(1e-4)
    for _ in range(3):
        optimizer.apply_gradients(encoder, ones(encoder, KERNEL))
    new = [np.full_like(array, 2.0) for array in encoder.get_weights()]
    encoder.set_weights(new)
    optimizer.apply_gradients(encoder, ones(encoder, KERNEL))
    np.testing.assert_allclose(optimizer.get_state()[1][f"{KERNEL}/master"], 2.0 - 1e-4, rtol=1e-6)


def test_frozen_weights_have_no_master() -> None:
    encoder = small_encoder().astype("bfloat16")
    optimizer = optimizers.AdamW()
    optimizer.apply_gradients(encoder, ones(encoder, KERNEL))
    assert sorted(optimizer.get_state()[1]) == [f"{KERNEL}/{slot}" for slot in ("m", "master", "v")]


def test_int8_is_refused() -> None:
    encoder = small_encoder().astype("int8")
    with pytest.raises(ValueError, match="dtype: got int8, expected float32, bfloat16 or float16"):
        encoder.vjp(small_inputs(), training=True, seed=0)
    optimizer = optimizers.SGD(0.1)
    with pytest.raises(ValueError, match="dtype: got int8, expected float32, bfloat16 or float16"):
        optimizer.apply_gradients(encoder, ones(encoder, KERNEL))
    assert optimizer.iterations == 0
