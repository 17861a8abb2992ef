"""`initializer`: forms, distributions, fans and seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from sparse_mixer import initializers

Array = np.ndarray[Any, Any]

WIDE = {"hidden_size": 64, "inner_dim": 128, "vocab_size": 500}


def weights_of(initializer: Any, **changes: Any) -> dict[str, Array]:
    encoder = small_encoder(**(WIDE | {"initializer": initializer} | changes))
    return {weight.key: weight.numpy() for weight in encoder.weights}


def test_default_is_a_cut_normal() -> None:
    weights = weights_of(initializers.DEFAULT)
    table = weights["word_embeddings/embeddings"]
    assert np.abs(table).max() <= 0.04
    assert table.std() == pytest.approx(0.02 * 0.8796, rel=0.02)
    assert abs(table.mean()) < 5e-4


def test_biases_and_norms_do_not_follow_the_initializer() -> None:
    for name, weight in weights_of("ones").items():
        expected = 0.0 if name.endswith(("bias", "beta")) else 1.0
        np.testing.assert_array_equal(weight, expected)


# Keras: the last two axes, each times the product of all before them.
FANS = {
    "transformer/layer_0/intermediate/kernel": (64, 128),
    "transformer/layer_1/moe/experts/intermediate/kernel": (4 * 64, 4 * 128),
    "transformer/layer_2/self_attention/query/kernel": (64 * 2, 64 * 32),
    "transformer/layer_2/self_attention/attention_output/kernel": (2 * 32, 2 * 64),
}


@pytest.mark.parametrize("name", FANS)
@pytest.mark.parametrize(
    ("initializer", "variance", "limit"),
    [
        ("glorot_uniform", lambda i, o: 2 / (i + o), math.sqrt(3)),
        ("glorot_normal", lambda i, o: 2 / (i + o), 2 / 0.8796),
        ("he_uniform", lambda i, o: 2 / i, math.sqrt(3)),
        ("he_normal", lambda i, o: 2 / i, 2 / 0.8796),
        ("lecun_uniform", lambda i, o: 1 / i, math.sqrt(3)),
        ("lecun_normal", lambda i, o: 1 / i, 2 / 0.8796),
        (initializers.VarianceScaling(3.0, "fan_out", "untruncated_normal"), lambda i, o: 3 / o, 6),
    ],
)
def test_variances_follow_the_fans(name: str, initializer: Any, variance: Any, limit: float) -> None:
    weight = weights_of(initializer)[name]
    std = math.sqrt(variance(*FANS[name]))
    assert weight.std() == pytest.approx(std, rel=0.05)
    assert np.abs(weight).max() <= limit * std * 1.001


def test_plain_distributions() -> None:
    table = "word_embeddings/embeddings"
    normal = weights_of(initializers.RandomNormal(1.0, 0.5))[table]
    assert normal.mean() == pytest.approx(1.0, abs=0.02)
    assert normal.std() == pytest.approx(0.5, rel=0.02)
    uniform = weights_of({"class_name": "RandomUniform", "config": {"minval": 1.0, "maxval": 3.0}})[table]
    assert uniform.min() >= 1
    assert uniform.max() < 3
    assert uniform.mean() == pytest.approx(2.0, abs=0.02)
    assert (weights_of(initializers.Constant(0.25))[table] == 0.25).all()


def test_orthogonal_and_identity() -> None:
    weights = weights_of(initializers.Orthogonal(gain=2.0))
    kernel = weights["transformer/layer_0/intermediate/kernel"]
    np.testing.assert_allclose(kernel @ kernel.T, 4 * np.eye(64), atol=1e-5)
    query = weights["transformer/layer_2/self_attention/query/kernel"].reshape(-1, 32)
    np.testing.assert_allclose(query.T @ query, 4 * np.eye(32), atol=1e-5)
    plain = {"attention_layers": (), "moe_layers": ()}
    assert (weights_of("identity", **plain)["pooler_transform/kernel"] == np.eye(64)).all()
    with pytest.raises(ValueError, match="Identity needs a weight with 2 axes"):
        weights_of("identity")


@pytest.mark.parametrize("initializer", ["truncated_normal", "orthogonal"])
def test_seeds(initializer: str) -> None:
    small = {"hidden_size": 16, "inner_dim": 32, "vocab_size": 50}
    one, again, other = (weights_of(initializer, seed=seed, **small) for seed in (1, 1, 2))
    kernel = "transformer/layer_0/linear_transform/hidden_kernel"
    np.testing.assert_array_equal(one[kernel], again[kernel])
    assert (one[kernel] != other[kernel]).any()
    assert (one[kernel] != one[kernel.replace("layer_0", "layer_1")]).any()


def test_unseeded_encoders_differ_unless_the_initializer_has_a_seed() -> None:
    def table(initializer: Any) -> Array:
        return weights_of(initializer, seed=None)["type_embeddings/embeddings"]

    assert (table("truncated_normal") != table("truncated_normal")).any()
    seeded = initializers.TruncatedNormal(seed=5)
    np.testing.assert_array_equal(table(seeded), table(seeded))


def test_threads_do_not_change_the_draw() -> None:
    large = {"vocab_size": 20_000, "hidden_size": 128}
    one, three = (weights_of("glorot_normal", num_threads=n, **large) for n in (1, 3))
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, three[name])


def test_callables_give_each_kernel_by_shape() -> None:
    shapes = []

    def count(shape: tuple[int, ...]) -> Array:
        shapes.append(shape)
        return np.full(shape, len(shapes), np.float64)

    weights = weights_of(count)
    assert (weights["word_embeddings/embeddings"] == 1).all()
    assert shapes[0] == (500, 64)
    assert (weights["pooler_transform/kernel"] == len(shapes)).all()


@pytest.mark.parametrize(
    "name", ["TruncatedNormal", "truncated_normal", "glorot_uniform", "Zeros", "zero", "orthogonal"]
)
def test_serialised_form_is_keras_own(name: str) -> None:
    initializer = initializers.resolve(name)
    serialised = initializers.serialize(initializer)
    assert serialised["module"] == "keras.initializers"
    assert initializers.resolve(serialised) == initializer
    assert initializers.resolve({"class_name": serialised["class_name"], "config": serialised["config"]}) == initializer


def test_foreign_initializers_are_recognised_by_class_name() -> None:
    class HeNormal:
        def get_config(self) -> dict[str, Any]:
            return {"seed": 3}

        def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
            return np.ones(shape)

    assert callable(initializers.resolve(HeNormal()))
    HeNormal.__module__ = "tf_keras.src.initializers.initializers"
    assert initializers.resolve(HeNormal()) == initializers.HeNormal(seed=3)
