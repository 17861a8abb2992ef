"""What the tf_keras layer does beyond TensorFlow's class: files, refusals, memory, what it does not do twice."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow_reference as reference
from sparse_mixer import _bridge
from sparse_mixer.keras import layer_class

from tests.usage_patterns.calls import tensors
from tests.usage_patterns.sizes import ARGUMENTS, batch, fill

tf, tf_keras = reference.tf, reference.tf_keras
SparseMixer = layer_class("tf_keras")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """TensorFlow warns about its own affairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def pushed() -> Iterator[list[int]]:
    """How many weights each call copies into the core."""
    counts: list[int] = []
    assign = _bridge.assign_all

    def count(variables: Any, values: Any) -> None:
        counts.append(len(variables))
        assign(variables, values)

    with mock.patch.object(_bridge, "assign_all", count):
        yield counts


def test_unchanged_weights_are_copied_once(pushed: list[int]) -> None:
    layer = SparseMixer(**ARGUMENTS)
    all_weights = len(layer.weights) - 3  # without the word table and the pooler
    layer(tensors()), layer(tensors())
    assert pushed == [all_weights]
    layer.weights[5].assign_add(tf.ones_like(layer.weights[5]))
    layer(tensors()), layer(tensors(4))
    assert pushed == [all_weights, 1]


def test_unchanged_weights_are_copied_once_in_graphs(pushed: list[int]) -> None:
    layer = SparseMixer(**ARGUMENTS)
    model = tf_keras.Model(layer.inputs, layer(layer.inputs)["pooled_output"])
    before = model.predict(batch(), batch_size=2, verbose=0)
    assert len(pushed) == 1
    fill([layer.weights[5]])
    assert np.abs(model.predict(batch(), batch_size=2, verbose=0) - before).max() > 1e-4
    assert pushed[1:] == [1]


def test_records_of_calls_that_nobody_differentiates_are_dropped() -> None:
    layer = SparseMixer(**ARGUMENTS)
    encode = tf.function(lambda x: layer(x, training=True)["pooled_output"])
    for _ in range(5):
        encode(tensors())
    encode_without = tf.function(lambda x: layer(x)["pooled_output"])
    encode_without(tensors())
    gc.collect()
    assert len(layer._bridge._records) <= 1


def test_keras_file_holds_the_whole_model(tmp_path: Path) -> None:
    layer = SparseMixer(**ARGUMENTS, name="mixer")
    fill(layer.weights)
    model = tf_keras.Model(layer.inputs, layer(layer.inputs)["pooled_output"])
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(batch(), verbose=0), model.predict(batch(), verbose=0))
    assert loaded.get_layer("mixer").get_config() == layer.get_config()


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5", "prefix"])
def test_weight_files_go_to_tensorflow_and_back(name: str, tmp_path: Path) -> None:
    ours = SparseMixer(**ARGUMENTS, name="mixer")
    theirs = reference.official_sparse_mixer.SparseMixer(**ARGUMENTS, name="mixer")
    models = [tf_keras.Model(x.inputs, x(x.inputs)["pooled_output"]) for x in (ours, theirs)]
    fill(ours.weights, seed=1)
    models[0].save_weights(str(tmp_path / name))
    models[1].load_weights(str(tmp_path / name))
    assert all((a == b).all() for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True))
    fill(theirs.weights, seed=2)
    models[1].save_weights(str(tmp_path / name))
    models[0].load_weights(str(tmp_path / name))
    assert all((a == b).all() for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True))


def test_config_builds_a_twin() -> None:
    layer = SparseMixer(**ARGUMENTS, name="mixer", trainable=False, pad_id=0)
    twin = SparseMixer.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(tensors())["pooled_output"], layer(tensors())["pooled_output"])


def test_seeds_of_layer_and_initializer_decide_the_weights() -> None:
    initializer = tf_keras.initializers.TruncatedNormal(stddev=0.02, seed=5)
    for options in ({"seed": 3}, {"initializer": initializer}):
        first, second = (SparseMixer(**ARGUMENTS, **options) for _ in range(2))
        assert all((a == b).all() for a, b in zip(first.get_weights(), second.get_weights(), strict=True))
    assert "seed" not in SparseMixer(**ARGUMENTS).get_config()


def test_saved_model_is_refused(tmp_path: Path) -> None:
    layer = SparseMixer(**ARGUMENTS)
    model = tf_keras.Model(layer.inputs, layer(layer.inputs)["pooled_output"])
    with pytest.raises(NotImplementedError, match="to_tensorflow"):
        tf.saved_model.save(model, str(tmp_path / "saved"))
    with pytest.raises(NotImplementedError, match="to_tensorflow"):
        model.export(str(tmp_path / "exported"))


def test_xla_is_refused() -> None:
    layer = SparseMixer(**ARGUMENTS)
    with pytest.raises(tf.errors.OpError, match="cannot_be_compiled_by_XLA_use_jit_compile_False"):
        tf.function(lambda x: layer(x)["pooled_output"], jit_compile=True)(tensors())


def test_gradients_of_gradients_are_refused() -> None:
    layer = SparseMixer(**ARGUMENTS)
    kernel = layer.weights[5]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(layer(tensors(), training=True)["sequence_output"] ** 2)
        (gradient,) = inner.gradient(loss, [kernel])
        norm = tf.reduce_sum(gradient**2)
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        outer.gradient(norm, kernel)


def test_single_blocks_cannot_be_called() -> None:
    with pytest.raises(NotImplementedError, match="to_tensorflow"):
        SparseMixer(**ARGUMENTS).transformer_layers[0](tf.zeros((2, 8, 16)))


def test_losses_of_blocks_share_one_factor() -> None:
    layer = SparseMixer(**{**ARGUMENTS, "moe_layers": (0, 1), "router_z_loss_weight": 0.1})
    with tf.GradientTape(persistent=True) as tape:
        layer(tensors(), training=True)
        equal = 2.0 * sum(layer.losses)
        different = layer.losses[0] + 3.0 * layer.losses[1]
    kernel = next(w for w in layer.weights if "router_weights/kernel" in w.name)
    assert np.abs(tape.gradient(equal, kernel)).max() > 0
    with pytest.raises(ValueError, match="one and the same factor"):
        tape.gradient(different, kernel)


def test_mixed_policy_computes_in_float32() -> None:
    fine = SparseMixer(**ARGUMENTS)
    coarse = SparseMixer(**ARGUMENTS, dtype="mixed_bfloat16")
    coarse.set_weights(fine.get_weights())
    for name in ("sequence_output", "pooled_output"):
        expected, got = fine(tensors())[name], coarse(tensors())[name]
        assert got.dtype == tf.bfloat16
        np.testing.assert_array_equal(tf.cast(got, tf.float32), tf.cast(tf.cast(expected, tf.bfloat16), tf.float32))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="max_groups"):
        SparseMixer(**ARGUMENTS, max_groups=3)
    with pytest.raises(ValueError, match="framework"):
        layer_class("pytorch")
    layer = SparseMixer(**ARGUMENTS)
    with pytest.raises(ValueError, match="input_mask"):
        layer({name: tensor for name, tensor in tensors().items() if name != "input_mask"})


def test_importing_the_package_imports_no_keras() -> None:
    program = (
        "import sys, sparse_mixer, sparse_mixer.keras; print([m for m in sys.modules if 'keras' in m.split('.')[0]])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
