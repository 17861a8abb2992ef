"""Every mistake a caller can make: which exception, what it names, and that nothing has changed."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import LENGTH, TYPES, VOCAB_SIZE, WIDTH, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import models

CONSTRUCTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden_size": 15}, ValueError, r"hidden_size: got 15, expected a multiple of num_attention_heads \(2\)"),
    ({"hidden_size": 15, "attention_layers": ()}, ValueError, "hidden_size: got 15"),
    ({"hidden_size": 0}, ValueError, "hidden_size: got 0"),
    ({"hidden_size": "16"}, TypeError, "hidden_size: expected an integer, got '16'"),
    ({"hidden_size": 16.0}, TypeError, "hidden_size: expected an integer, got 16.0"),
    ({"hidden_size": True}, TypeError, "hidden_size: expected an integer, got True"),
    ({"vocab_size": -1}, ValueError, "vocab_size: got -1"),
    ({"vocab_size": 2**62}, ValueError, "vocab_size"),
    ({"vocab_size": 10**30}, ValueError, "vocab_size"),
    ({"num_layers": 0}, ValueError, "num_layers: got 0, expected at least 1"),
    ({"num_layers": -2}, ValueError, "num_layers: got -2"),
    ({"num_experts": 0}, ValueError, "num_experts: got 0"),
    ({"num_attention_heads": 0}, ValueError, "num_attention_heads: got 0"),
    ({"max_sequence_length": None}, TypeError, "max_sequence_length: expected an integer, got None"),
    ({"type_vocab_size": 0}, ValueError, "type_vocab_size: got 0"),
    ({"inner_dim": 0}, ValueError, "inner_dim: got 0"),
    ({"embedding_width": 0}, ValueError, "embedding_width: got 0"),
    ({"eval_capacity_factor": -0.5}, ValueError, "eval_capacity_factor: got -0.5"),
    ({"train_capacity_factor": float("nan")}, ValueError, "train_capacity_factor: expected a finite number, got nan"),
    ({"train_capacity_factor": float("inf")}, ValueError, "train_capacity_factor"),
    ({"examples_per_group": 0}, ValueError, "examples_per_group: got 0"),
    ({"examples_per_group": "1"}, TypeError, "examples_per_group: expected a number, got '1'"),
    ({"output_dropout": 1.5}, ValueError, "output_dropout: got 1.5"),
    ({"attention_dropout": -0.1}, ValueError, "attention_dropout: got -0.1"),
    ({"output_range": 0}, ValueError, "output_range: got 0"),
    ({"output_range": -5}, ValueError, "output_range: got -5"),
    ({"output_range": LENGTH + 1}, ValueError, f"output_range: got {LENGTH + 1}"),
    ({"max_group_size": 0}, ValueError, "max_group_size: got 0"),
    ({"max_group_size": 8, "examples_per_group": 2.0}, ValueError, "max_group_size: got 8 together with"),
    ({"mixing_mechanism": "wavelet"}, ValueError, "mixing_mechanism: unsupported mixing mechanism 'wavelet'"),
    ({"mixing_mechanism": None}, ValueError, "mixing_mechanism: unsupported mixing mechanism None"),
    ({"inner_activation": "Relu"}, ValueError, "inner_activation: unknown activation 'Relu'; did you mean 'relu'"),
    ({"inner_activation": 3}, TypeError, "inner_activation: expected a name"),
    ({"inner_activation": {"value": ("AAAA", None, None)}}, ValueError, "inner_activation: .* byte code"),
    ({"inner_activation": {"class_name": "PReLU", "config": {"name": "p"}}}, ValueError, "inner_activation: cannot"),
    ({"inner_activation": {"name": "relu", "slope": 1}}, ValueError, "inner_activation: .*no parameter 'slope'"),
    ({"initializer": "glorot"}, ValueError, "initializer: unknown initialiser 'glorot'"),
    ({"initializer": 3}, TypeError, "initializer: expected a name"),
    ({"initializer": lambda shape: np.zeros(3)}, ValueError, "initializer: expected an array of shape"),
    ({"initializer": {"class_name": "Zeros", "config": {"x": 1}}}, TypeError, "initializer: Zeros"),
    ({"embedding_layer": 3}, TypeError, "embedding_layer: expected a callable"),
    ({"moe_layers": None}, TypeError, "moe_layers: expected a sequence"),
    ({"attention_layers": 3}, TypeError, "attention_layers: expected a sequence"),
    ({"moe_layers": ["1"]}, TypeError, r"moe_layers\[0\]: expected an integer"),
    ({"norm_first": "yes"}, TypeError, "norm_first: expected True or False"),
    ({"dtype": "float64"}, ValueError, "dtype: unsupported dtype 'float64'"),
    ({"semantics": "tensorflow"}, ValueError, "semantics: got 'tensorflow', expected one of 'keras'"),
    ({"semantics": None}, TypeError, "semantics: expected a string"),
    ({"router_z_loss_weight": -1.0}, ValueError, "router_z_loss_weight: got -1"),
    ({"seed": -1}, ValueError, "seed: got -1"),
    ({"seed": 2**64}, ValueError, "seed: got"),
    ({"num_threads": 0}, ValueError, "num_threads: got 0"),
    ({"num_threads": 1.5}, TypeError, "num_threads: expected an integer"),
    ({"isa": "sse9"}, ValueError, 'isa: got "sse9"'),
    ({"unknown_argument": 1}, TypeError, "unknown_argument"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CONSTRUCTION, ids=lambda value: str(value)[:50])
def test_construction(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small_encoder(**changes)


def test_vocab_size_is_required() -> None:
    with pytest.raises(TypeError, match="vocab_size"):
        sparse_mixer.SparseMixer()  # type: ignore[call-arg]


Change = Callable[[dict[str, Any]], Any]


def put(key: str, change: Callable[[Any], Any]) -> Change:
    return lambda inputs: inputs | {key: change(inputs[key])}


def without(key: str) -> Change:
    return lambda inputs: {name: value for name, value in inputs.items() if name != key}


def at(position: tuple[int, int], value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        changed = array.astype(np.result_type(array.dtype, np.min_scalar_type(value)))
        changed[position] = value
        return changed

    return change


def embeddings(fill: Any = 0.0, width: int = WIDTH, length: int = LENGTH, dtype: Any = np.float32) -> Change:
    return lambda inputs: inputs | {"input_word_embeddings": np.full((2, length, width), fill, dtype)}


def dense(length: int = 3, width: int = WIDTH, **changes: Any) -> Change:
    def add(inputs: dict[str, Any]) -> dict[str, Any]:
        words = {key: value[:, : LENGTH - 3] for key, value in inputs.items()}
        parts = {
            "dense_inputs": np.zeros((2, length, width), np.float32),
            "dense_mask": np.ones((2, 3), np.int32),
            "dense_type_ids": np.zeros((2, 3), np.int32),
        }
        return words | parts | changes

    return add


CALLS: list[tuple[str, Change, type[Exception], str]] = [
    ("a list", lambda inputs: list(inputs.values()), ValueError, "inputs: expected a dict .*, got list"),
    ("None", lambda inputs: None, ValueError, "inputs: expected a dict .*, got NoneType"),
    ("no ids", without("input_word_ids"), ValueError, "input_word_ids: missing from the inputs"),
    ("no mask", without("input_mask"), ValueError, "input_mask: missing from the inputs"),
    ("no types", without("input_type_ids"), ValueError, "input_type_ids: missing from the inputs"),
    ("None as mask", put("input_mask", lambda _: None), ValueError, "input_mask: got None"),
    (
        "other keys",
        lambda inputs: {"word_ids": inputs["input_word_ids"]},
        ValueError,
        r"input_word_ids: missing .*\(is 'word_ids' meant to be it\?\)",
    ),
    ("rank 1", put("input_word_ids", lambda ids: ids[0]), ValueError, r"input_word_ids: expected shape \[batch"),
    ("rank 3", put("input_mask", lambda mask: mask[:, None]), ValueError, r"input_mask: expected shape \[batch"),
    (
        "short",
        lambda inputs: {key: value[:, :7] for key, value in inputs.items()},
        ValueError,
        r"input_word_ids: .*7.*max_sequence_length \(8\)",
    ),
    (
        "long",
        lambda inputs: {key: np.repeat(value, 2, 1) for key, value in inputs.items()},
        ValueError,
        r"input_word_ids: .*16.*max_sequence_length \(8\)",
    ),
    ("short mask", put("input_mask", lambda mask: mask[:, :5]), ValueError, "input_mask"),
    ("other batch of types", put("input_type_ids", lambda ids: ids[:1]), ValueError, "input_type_ids"),
    ("other batch of mask", put("input_mask", lambda ids: ids[:1]), ValueError, "input_mask"),
    (
        "large id",
        put("input_word_ids", at((1, 2), VOCAB_SIZE)),
        ValueError,
        rf"input_word_ids: got id 50 at position \[1, 2\], expected 0 <= id < vocab_size \({VOCAB_SIZE}\)",
    ),
    ("negative id", put("input_word_ids", at((0, 3), -1)), ValueError, r"input_word_ids: got id -1 at .*\[0, 3\]"),
    ("huge id", put("input_word_ids", at((0, 3), 2**40)), ValueError, r"input_word_ids: .*\[0, 3\]"),
    (
        "beyond int64",
        put("input_word_ids", lambda ids: np.full(ids.shape, 2**64 - 1, np.uint64)),
        ValueError,
        r"input_word_ids: got id 9223372036854775807 at position \[0, 0\]",
    ),
    (
        "large type",
        put("input_type_ids", at((0, 0), TYPES)),
        ValueError,
        r"input_type_ids: got id 3 at position \[0, 0\]",
    ),
    (
        "fractional ids",
        put("input_word_ids", at((1, 4), 1.5)),
        TypeError,
        r"input_word_ids\[1, 4\]: got 1.5, expected an integer",
    ),
    ("NaN ids", put("input_word_ids", at((1, 4), np.nan)), TypeError, r"input_word_ids\[1, 4\]: got nan"),
    ("boolean ids", put("input_word_ids", lambda ids: ids > 3), TypeError, "input_word_ids: expected integers"),
    ("strings", put("input_word_ids", lambda ids: ids.astype(str)), TypeError, "input_word_ids: expected integers"),
    ("ragged", put("input_word_ids", lambda ids: [[1], [1, 2]]), ValueError, "input_word_ids: cannot be read"),
    ("complex mask", put("input_mask", lambda mask: mask * 1j), TypeError, "input_mask: expected a real-valued"),
    ("NaN in embeddings", embeddings(np.nan), ValueError, r"input_word_embeddings: got NaN at position \[0, 0, 0\]"),
    ("infinite embeddings", embeddings(np.inf), ValueError, "input_word_embeddings: got inf"),
    ("narrow embeddings", embeddings(width=WIDTH - 1), ValueError, "input_word_embeddings"),
    ("short embeddings", embeddings(length=LENGTH - 1), ValueError, "input_word_embeddings: .*7"),
    ("integer embeddings", embeddings(1, dtype=np.int32), TypeError, "input_word_embeddings: expected floating"),
    ("no dense mask", dense(dense_mask=None), ValueError, "dense_mask: got None"),
    ("no dense types", dense(dense_type_ids=None), ValueError, "dense_type_ids: got None"),
    ("narrow dense", dense(width=5), ValueError, "dense_inputs"),
    ("long dense", dense(length=4), ValueError, "dense"),
    ("short dense mask", dense(dense_mask=np.ones((2, 2))), ValueError, "dense_mask|input_mask"),
    ("integer dense", dense(dense_inputs=np.zeros((2, 3, WIDTH), int)), TypeError, "dense_inputs: expected floating"),
    ("NaN in dense", dense(dense_inputs=np.full((2, 3, WIDTH), np.nan)), ValueError, "dense_inputs: got NaN"),
]


@pytest.mark.parametrize(("change", "error", "message"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_call(change: Change, error: type[Exception], message: str) -> None:
    encoder = small_encoder()
    before = encoder(small_inputs())
    losses = encoder.losses
    with pytest.raises(error, match=message):
        encoder(change(small_inputs()))
    assert encoder.losses == losses
    assert_same_outputs(encoder(small_inputs()), before)


def test_other_mappings_are_welcome() -> None:
    encoder = small_encoder()
    assert_same_outputs(encoder(collections.UserDict(small_inputs())), encoder(small_inputs()))


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"training": "yes"}, TypeError, "training: expected True or False"),
        ({"training": 2}, TypeError, "training: expected True or False"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"outputs": "pooled_output"}, TypeError, "outputs: expected a list of names, got a string"),
        ({"outputs": ("pooled",)}, ValueError, "outputs: .*pooled"),
        ({"check_finite": None}, TypeError, "check_finite: expected True or False"),
    ],
)
def test_keywords_of_the_call(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small_encoder()(small_inputs(), **keywords)


def test_training_is_not_positional() -> None:
    with pytest.raises(TypeError, match="positional"):
        small_encoder()(small_inputs(), True)  # type: ignore[misc]


@pytest.mark.parametrize(("examples", "batch"), [(4.0, 2), (2.0, 3), (1.5, 2), (0.01, 2)])
def test_examples_per_group_that_does_not_fit_the_batch(examples: float, batch: int) -> None:
    encoder = small_encoder(examples_per_group=examples)
    with pytest.raises(ValueError, match="examples_per_group"):
        encoder(small_inputs(batch))


def test_fraction_of_an_example_per_group() -> None:
    """TensorFlow computes this, too: int(8 * 0.3) = 2 tokens per group, which divides 8."""
    outputs = small_encoder(examples_per_group=0.3, num_experts=2)(small_inputs(), outputs=("routing",))
    assert outputs["routing"][0]["indices"].shape == (8, 2, 1)


def test_capacity_above_the_group() -> None:
    with pytest.raises(ValueError, match="eval_capacity_factor"):
        small_encoder(eval_capacity_factor=4.5)(small_inputs())


def test_type_ids_outside_are_zeros_when_strict() -> None:
    encoder = small_encoder(semantics="keras_strict", output_range=-5)
    inputs = small_inputs()
    inputs["input_type_ids"][0, 0] = TYPES + 4
    assert encoder(inputs)["sequence_output"].shape == (2, LENGTH, WIDTH)


def _wrong_weights() -> list[tuple[str, Callable[[list[Any]], Any], type[Exception], str]]:
    return [
        ("one less", lambda w: w[:-1], ValueError, "weights: expected 43 arrays, got 42"),
        ("none", lambda w: [], ValueError, "weights: expected 43 arrays, got 0"),
        (
            "wrong shape",
            lambda w: [w[0].T, *w[1:]],
            ValueError,
            r"weights\[0\] .*expected shape \(50, 16\), got \(16, 50\)",
        ),
        ("last wrong", lambda w: [*w[:-1], np.zeros(3)], ValueError, r"weights\[42\] .*pooler_transform/bias"),
        ("strings", lambda w: [np.full(w[0].shape, "a"), *w[1:]], TypeError, r"weights\[0\].*real-valued"),
        ("a number", lambda w: 3, TypeError, "weights: expected a list of arrays, got int"),
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"), [w[1:] for w in _wrong_weights()], ids=[w[0] for w in _wrong_weights()]
)
def test_set_weights(change: Callable[[list[Any]], Any], error: type[Exception], message: str) -> None:
    encoder = small_encoder()
    before = encoder.get_weights()
    changed = [weight + 1 for weight in before]
    with pytest.raises(error, match=message):
        encoder.set_weights(change(changed))
    for a, b in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_variable_of_a_wrong_shape() -> None:
    table = small_encoder().get_embedding_table()
    with pytest.raises(ValueError, match="expected shape"):
        table.assign(np.zeros(3))


def test_lookup_outside_the_table() -> None:
    layer = small_encoder().get_embedding_layer()
    with pytest.raises(ValueError, match=r"ids\[0, 1\]: got 50, expected 0 <= id < 50"):
        layer([[1, VOCAB_SIZE]])
    with pytest.raises(TypeError, match=r"ids\[0\]: got 0.5, expected an integer"):
        layer([0.5])
    with pytest.raises(TypeError, match="ids: expected integers"):
        layer([True])


def test_embedding_layer_that_returns_something_else() -> None:
    with pytest.raises(ValueError, match="embedding"):
        small_encoder(embedding_layer=lambda ids: np.zeros((2, 3)))(small_inputs())
    with pytest.raises(ValueError, match="embeddings"):
        small_encoder(embedding_layer=lambda ids: np.zeros((2, LENGTH, WIDTH + 1)))(small_inputs())


def test_exceptions_of_callables_come_through() -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("mine")

    for changes in ({"inner_activation": broken}, {"embedding_layer": broken}):
        with pytest.raises(ZeroDivisionError, match="mine"):
            small_encoder(**changes)(small_inputs())
    with pytest.raises(ZeroDivisionError, match="mine"):
        small_encoder(initializer=broken)


@pytest.mark.parametrize("result", [lambda x: x[:1], lambda x: None, lambda x: x * 1j])
def test_activation_that_returns_something_else(result: Callable[[Any], Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="inner_activation"):
        small_encoder(inner_activation=result)(small_inputs())


def test_threads_out_of_range() -> None:
    with pytest.raises(ValueError, match="num_threads: got 0"):
        sparse_mixer.set_num_threads(0)
    with pytest.raises(ValueError, match="num_threads: got -1"):
        small_encoder().num_threads = -1
    for huge in (2**63, -(2**70), 4097):
        with pytest.raises(ValueError, match=f"num_threads: got {huge}, expected 1 to 4096"):
            sparse_mixer.set_num_threads(huge)


@pytest.mark.parametrize(
    ("layer", "value", "named"),
    [
        (0, np.nan, "the embeddings are"),
        (1, np.inf, "the embeddings are"),
        (4, 1e38, "block 0 is"),
        (5, 1e38, "block 1 is"),
        (6, np.nan, "block 2 is"),
        (7, np.nan, "the pooler is"),
    ],
)
@pytest.mark.parametrize("differentiable", [False, True])
def test_not_finite_inside(layer: int, value: float, named: str, differentiable: bool) -> None:
    encoder = small_encoder()
    assert [type(part).__name__ for part in encoder.layers[4:7]] == ["TransformerLayer"] * 3
    part = encoder.layers[layer]
    part.set_weights([np.full(weight.shape, value) for weight in part.weights])
    call = encoder.vjp if differentiable else encoder
    with np.errstate(all="ignore"):
        call(small_inputs())
    with pytest.raises(ValueError, match=f"check_finite: {named} the first whose output has a NaN or an infinity"):
        call(small_inputs(), check_finite=True)


def test_internal_errors_can_be_caught() -> None:
    assert issubclass(sparse_mixer.InternalError, RuntimeError)


def test_heads_that_no_memory_can_hold() -> None:
    encoder = small_encoder()
    with pytest.raises(ValueError, match="num_classes: too large"):
        models.BertClassifier(encoder, 2**60, seed=0)
    with pytest.raises(MemoryError, match="not enough memory for"):
        models.BertClassifier(encoder, 2**36, seed=0)


def test_models_want_encoders() -> None:
    for model in (models.BertClassifier, models.BertTokenClassifier):
        with pytest.raises(TypeError, match="network: expected a SparseMixer, got NoneType"):
            model(None, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encoder_network: expected a SparseMixer, got int"):
        models.BertPretrainerV2(3, seed=0)  # type: ignore[arg-type]
