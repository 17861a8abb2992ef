"""The rules behind `semantics="paper"`, one by one, and as keywords of their own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import ARGUMENTS, LENGTH, TYPES, VOCAB_SIZE, WIDTH, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import SparseMixer, optimizers

Array = np.ndarray[Any, Any]


def paper_encoder(**changes: Any) -> SparseMixer:
    return small_encoder(**{"semantics": "paper", "pad_id": 3} | changes)


def ids_and_types(batch: int = 2, length: int = LENGTH, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCAB_SIZE, (batch, length), dtype=np.int32)
    ids[0, -3:] = 3
    return {"input_word_ids": ids, "input_type_ids": rng.integers(0, TYPES, ids.shape, dtype=np.int32)}


def keys(encoder: SparseMixer) -> list[str]:
    return [weight.key for weight in encoder.weights]


# Padding ------------------------------------------------------------------------------------------------------------


def test_padding_is_found_in_the_ids_or_given_as_a_mask() -> None:
    encoder, inputs = paper_encoder(), ids_and_types()
    by_ids = encoder(inputs)
    mask = inputs["input_word_ids"] != 3
    assert_same_outputs(encoder(inputs | {"input_mask": mask}), by_ids)
    everything = encoder(inputs | {"input_mask": np.ones_like(mask)})
    assert (everything["sequence_output"][0] != by_ids["sequence_output"][0]).any()
    assert_same_outputs(paper_encoder(pad_id=-1)(inputs), everything)


def test_padding_ids_default_to_0() -> None:
    inputs = small_inputs()
    inputs["input_word_ids"][:] = np.where(inputs["input_mask"], np.maximum(inputs["input_word_ids"], 1), 0)
    with_mask = paper_encoder(pad_id=None)(inputs)
    del inputs["input_mask"]
    assert_same_outputs(paper_encoder(pad_id=None)(inputs), with_mask)


def test_padding_attends_to_everything_evenly() -> None:
    """Padded queries get the mean of all values; so does every query of an example that is nothing but padding."""
    encoder = paper_encoder(num_layers=1, moe_layers=(), attention_layers=(0,))
    rows = np.random.default_rng(1).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)
    types = np.zeros((2, LENGTH), np.int32)
    mask = np.ones((2, LENGTH))
    mask[0, 5:] = 0
    inputs = {"input_word_embeddings": rows, "input_type_ids": types, "input_mask": mask}
    for weight in encoder.weights:
        if weight.key.endswith("query/kernel"):
            weight.assign(weight.numpy() * 0)
    # Without queries real tokens attend evenly, too: to real tokens.
    even = encoder(inputs)
    mask[0] = 0
    all_padding = encoder(inputs)
    np.testing.assert_array_equal(even["sequence_output"][0, 5:], all_padding["sequence_output"][0, 5:])
    assert (even["sequence_output"][0, :5] != all_padding["sequence_output"][0, :5]).any()
    np.testing.assert_array_equal(even["sequence_output"][1], all_padding["sequence_output"][1])
    mask[0] = 1
    no_padding = encoder(inputs)
    np.testing.assert_allclose(no_padding["sequence_output"], all_padding["sequence_output"], atol=1e-6)


def test_own_embeddings_need_a_mask_or_ids() -> None:
    encoder, inputs = paper_encoder(), ids_and_types()
    table = encoder.get_embedding_table().numpy()
    expected = encoder(inputs)
    with_layer = paper_encoder(embedding_layer=lambda ids: table[ids])
    with_layer.set_weights(encoder.get_weights()[1:])
    assert_same_outputs(with_layer(inputs), expected)
    rows = {"input_word_embeddings": table[inputs["input_word_ids"]], "input_type_ids": inputs["input_type_ids"]}
    with pytest.raises(ValueError, match="input_mask"):
        encoder(rows)
    assert_same_outputs(encoder(rows | {"input_mask": inputs["input_word_ids"] != 3}), expected)


def test_dense_inputs_bring_their_own_mask() -> None:
    encoder, inputs = paper_encoder(), ids_and_types(length=LENGTH - 2)
    dense = {
        "dense_inputs": np.ones((2, 2, WIDTH), np.float32),
        "dense_type_ids": np.zeros((2, 2), np.int32),
    }
    with pytest.raises(ValueError, match="dense_mask"):
        encoder(inputs | dense)
    dense["dense_mask"] = np.ones((2, 2), np.float32)
    by_ids = encoder(inputs | dense)
    assert_same_outputs(encoder(inputs | dense | {"input_mask": inputs["input_word_ids"] != 3}), by_ids)


def test_pad_id_alone_makes_masks_unnecessary() -> None:
    inputs = ids_and_types()
    with pytest.raises(ValueError, match="input_mask"):
        small_encoder()(inputs)
    assert np.isfinite(small_encoder(pad_id=3)(inputs)["sequence_output"]).all()


# Lengths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, LENGTH - 1])
@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_layers": (0, 1, 2)},
        {"mixing_mechanism": "fourier"},
        {"mixing_mechanism": "hartley", "use_fft": True},
    ],
    ids=str,
)
def test_shorter_sequences(arguments: dict[str, Any], length: int) -> None:
    inputs = ids_and_types(length=length)
    inputs["input_word_ids"][0, -1] = 5
    encoder = paper_encoder(**arguments, min_expert_capacity=1)
    outputs, vjp = encoder.vjp(inputs, training=False)
    assert outputs["sequence_output"].shape == (2, length, WIDTH)
    assert [block.shape for block in outputs["encoder_outputs"]] == [(2, length, WIDTH)] * 3
    assert_same_outputs(encoder(inputs), outputs)
    # An encoder built for that length, with the first positions of the table, does the same.
    exact = paper_encoder(**arguments, min_expert_capacity=1, max_sequence_length=length)
    weights = encoder.get_weights()
    weights[1] = weights[1][:length]
    exact.set_weights(weights)
    for key in ("sequence_output", "pooled_output"):
        np.testing.assert_allclose(exact(inputs)[key], outputs[key], atol=5e-5, rtol=1e-4)
    gradient = vjp({"sequence_output": np.ones_like(outputs["sequence_output"])})["position_embedding/embeddings"]
    assert gradient.shape == (LENGTH, WIDTH)
    assert gradient[:length].any()
    assert not gradient[length:].any()


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ({}, LENGTH - 1),
        ({"mixing_mechanism": "toeplitz"}, LENGTH - 1),
        ({"mixing_mechanism": "fourier"}, LENGTH + 1),
        ({"mixing_mechanism": "fourier"}, 0),
        ({"mixing_mechanism": "fourier", "semantics": "keras"}, LENGTH - 1),
    ],
    ids=str,
)
def test_other_lengths_are_refused(arguments: dict[str, Any], length: int) -> None:
    inputs = {key: np.zeros((2, length), np.int32) for key in ("input_word_ids", "input_type_ids")}
    with pytest.raises(ValueError, match=r"sequence length.*expected.*max_sequence_length"):
        paper_encoder(**arguments)(inputs)


# Weights ------------------------------------------------------------------------------------------------------------


def test_choices_are_keywords_of_keras_semantics_too() -> None:
    plain = keys(small_encoder())
    added = [key for key in keys(small_encoder(moe_residual=True)) if key not in plain]
    assert added == [f"transformer/layer_1/output_layer_norm/{part}" for part in ("gamma", "beta")]
    added = [key for key in keys(small_encoder(project_embeddings=True)) if key not in plain]
    assert added == ["embedding_projection/kernel", "embedding_projection/bias"]
    assert keys(paper_encoder(moe_residual=False, project_embeddings=False)) == plain
    both = small_encoder(moe_residual=True, project_embeddings=True)
    assert keys(paper_encoder()) == keys(both)


def test_experts_have_their_own_width() -> None:
    shapes = {weight.key: weight.shape for weight in paper_encoder(expert_inner_dim=7).weights}
    assert shapes["transformer/layer_1/moe/experts/intermediate/kernel"] == (4, WIDTH, 7)
    assert shapes["transformer/layer_1/moe/experts/output/kernel"] == (4, 7, WIDTH)
    assert shapes["transformer/layer_0/intermediate/kernel"] == (WIDTH, 32)


def test_initial_weights_are_the_papers() -> None:
    encoder = SparseMixer(500, hidden_size=200, embedding_width=64, num_layers=1, num_attention_heads=2,
                          semantics="paper", seed=1)  # fmt: skip
    values = {weight.key: weight.numpy() for weight in encoder.weights}
    word = values["word_embeddings/embeddings"]
    assert word.std() == pytest.approx(0.02, rel=0.02)
    assert np.abs(word).max() > 0.06  # not truncated
    projection = values["embedding_projection/kernel"]
    assert projection.std() == pytest.approx(64**-0.5, rel=0.03)
    assert np.abs(projection).max() <= 2 * 64**-0.5 / 0.8796 + 1e-6
    truncated = SparseMixer(500, hidden_size=200, num_layers=1, num_attention_heads=2, semantics="paper",
                            initializer="truncated_normal", seed=1)  # fmt: skip
    kernel = next(weight for weight in truncated.weights if weight.key == "embedding_projection/kernel").numpy()
    assert kernel.std() == pytest.approx(0.05 * 0.8796, rel=0.03)


# Groups and capacity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "size", "groups"),
    [(2, None, 1), (2, 8, 2), (3, 7, 3), (3, 5, 4), (5, 3, 20)],
)
def test_groups_cross_examples(batch: int, size: int | None, groups: int) -> None:
    encoder = paper_encoder(max_group_size=size, min_expert_capacity=1)
    (routing,) = encoder(ids_and_types(batch), outputs=("routing",))["routing"]
    assert routing["probabilities"].shape[:2] == (groups, batch * LENGTH // groups)


def test_examples_per_group_is_still_an_argument() -> None:
    encoder = paper_encoder(examples_per_group=2.0)
    (routing,) = encoder(ids_and_types(4), outputs=("routing",))["routing"]
    assert routing["probabilities"].shape[:2] == (2, 2 * LENGTH)


@pytest.mark.parametrize(("factor", "least", "capacity"), [(1.0, None, 4), (0.5, None, 4), (0.5, 1, 2), (1.5, 5, 6)])
def test_capacity_has_a_minimum(factor: float, least: int | None, capacity: int) -> None:
    encoder = paper_encoder(eval_capacity_factor=factor, min_expert_capacity=least)
    (routing,) = encoder(ids_and_types(), outputs=("routing",))["routing"]
    assert routing["indices"].shape == (1, 4, capacity)


def test_capacity_above_the_group_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"min_expert_capacity: got 9.*9 of the 8 tokens"):
        paper_encoder(max_group_size=8, min_expert_capacity=9)(ids_and_types())
    # Tokens that choose leave what they do not need.
    encoder = paper_encoder(max_group_size=8, min_expert_capacity=9, router="tokens_choose")
    assert np.isfinite(encoder(ids_and_types())["sequence_output"]).all()


# Dropout --------------------------------------------------------------------------------------------------------------


def test_attention_dropout_is_shared_by_examples() -> None:
    arguments = {"num_layers": 1, "moe_layers": (), "attention_layers": (0,), "attention_dropout": 0.5}
    inputs = {key: np.repeat(value[1:], 2, axis=0) for key, value in ids_and_types().items()}
    for semantics, same in {"paper": True, "keras": False}.items():
        encoder = paper_encoder(**arguments, output_dropout=0.0, semantics=semantics)
        rows = encoder(inputs, training=True, seed=4)["sequence_output"]
        assert (rows[0] == rows[1]).all() == same
        assert (encoder(inputs)["sequence_output"] != rows).any()


def distinct_values(is_moe: bool, semantics: str) -> int:
    """Most different values in a row, when embeddings are ones, mixing is the identity and the feed-forward gives ones.

    Dropout of the embeddings makes two values of them, dropout after mixing three, and so on.
    """
    encoder = paper_encoder(
        num_layers=1, moe_layers=(0,) if is_moe else (), attention_layers=(), initializer="zeros", output_dropout=0.5,
        expert_dropout=0.0, semantics=semantics, moe_residual=True, project_embeddings=True,
    )  # fmt: skip
    for weight in encoder.weights:
        if weight.key.endswith(("hidden_kernel", "seq_kernel")):
            weight.assign(np.eye(*weight.shape))
        if weight.key.endswith(("embedding_projection/bias", "layer_0/output/bias")):
            weight.assign(np.ones(weight.shape))
    rows = encoder(ids_and_types(), training=True, seed=1)["sequence_output"].reshape(-1, WIDTH)
    return max(len(np.unique(np.round(row, 4))) for row in rows)


def test_blocks_drop_feed_forward_outputs_but_not_mixing_outputs() -> None:
    assert distinct_values(is_moe=True, semantics="paper") == 2
    assert distinct_values(is_moe=False, semantics="paper") == 4
    assert distinct_values(is_moe=True, semantics="keras") == 3


def test_experts_have_their_own_dropout_rate() -> None:
    encoder = paper_encoder(output_dropout=0.0, attention_dropout=0.0, expert_dropout=0.0)
    inputs = ids_and_types()
    np.testing.assert_array_equal(
        encoder(inputs, training=True, seed=1)["sequence_output"], encoder(inputs)["sequence_output"]
    )
    encoder = paper_encoder(output_dropout=0.0, attention_dropout=0.0, expert_dropout=0.3)
    assert (encoder(inputs, training=True)["sequence_output"] != encoder(inputs)["sequence_output"]).any()
    with pytest.raises(ValueError, match="expert_dropout: got 1"):
        paper_encoder(expert_dropout=1.0)(inputs, training=True)


# Configuration --------------------------------------------------------------------------------------------------------

EXTENSIONS: dict[str, Any] = {
    "semantics": "paper",
    "pad_id": 3,
    "moe_residual": False,
    "project_embeddings": False,
    "min_expert_capacity": 2,
    "expert_inner_dim": 7,
    "expert_dropout": 0.25,
    "router": "tokens_choose",
    "num_selected_experts": 2,
    "batch_prioritized_routing": False,
    "auxiliary_loss_factor": 0.5,
    "router_dtype": "bfloat16",
    "router_z_loss_weight": 0.1,
    "group_mixup": True,
    "max_group_size": 8,
    "mixing_mechanism": "circulant",
}


def test_every_choice_goes_round(tmp_path: Path) -> None:
    encoder = small_encoder(**EXTENSIONS)
    assert EXTENSIONS.items() <= encoder.get_config().items()
    again = SparseMixer.from_config(encoder.get_config())
    again.set_weights(encoder.get_weights())
    encoder.save(tmp_path / "encoder.safetensors")
    inputs = ids_and_types()
    for copy in (again, SparseMixer.load(tmp_path / "encoder.safetensors"), pickle.loads(pickle.dumps(encoder))):
        assert copy.get_config() == encoder.get_config()
        assert_same_outputs(copy(inputs), encoder(inputs))


def test_defaults_are_not_in_the_config() -> None:
    assert not set(EXTENSIONS) - {"mixing_mechanism"} & set(small_encoder().get_config())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"semantics": "jax"}, ValueError, "semantics: got 'jax', expected one of 'keras', 'keras_strict', 'paper'"),
        ({"router": "nobody"}, ValueError, "router: got 'nobody', expected one of 'experts_choose', 'tokens_choose'"),
        ({"router_dtype": "float16"}, ValueError, "router_dtype: got 'float16'"),
        ({"router": 1}, TypeError, "router: expected a string"),
        ({"pad_id": VOCAB_SIZE}, ValueError, f"pad_id: got {VOCAB_SIZE}"),
        ({"pad_id": -2}, ValueError, "pad_id: got -2"),
        ({"pad_id": 0.5}, TypeError, "pad_id: expected an integer"),
        ({"expert_inner_dim": 0}, ValueError, "expert_inner_dim: got 0"),
        ({"expert_dropout": 1.5}, ValueError, "expert_dropout: got 1.5"),
        ({"min_expert_capacity": -1}, ValueError, "min_expert_capacity: got -1"),
        ({"num_selected_experts": 0}, ValueError, "num_selected_experts: got 0"),
        ({"num_selected_experts": 5, "router": "tokens_choose"}, ValueError, "num_selected_experts: got 5"),
        ({"num_selected_experts": 2}, ValueError, 'num_selected_experts: got 2, which only router="tokens_choose"'),
        (
            {"project_embeddings": False, "embedding_width": 8},
            ValueError,
            "project_embeddings: got False, but only a projection leads from embedding_width (8) to hidden_size",
        ),
        ({"auxiliary_loss_factor": -1.0}, ValueError, "auxiliary_loss_factor: got -1"),
        ({"group_mixup": "yes"}, TypeError, "group_mixup: expected True or False"),
        ({"moe_residual": False, "norm_first": True}, ValueError, "moe_residual: got False together with norm_first"),
    ],
    ids=str,
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        small_encoder(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_storage_types(dtype: str) -> None:
    inputs = ids_and_types()
    for mechanism in ("linear", "circulant"):
        encoder = paper_encoder(mixing_mechanism=mechanism)
        converted = encoder.astype(dtype)
        got = converted(inputs)["sequence_output"]
        # Against the same encoder in 32 bits with the weights as they were rounded: what is left is the rounding of
        # activations, which float16 does not do.
        encoder.set_weights(converted.get_weights())
        exact = encoder(inputs)["sequence_output"]
        if dtype == "float16":
            np.testing.assert_allclose(got, exact, atol=2e-5)
        cosines = (got * exact).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert cosines.min() > {"float16": 0.999999, "bfloat16": 0.99999, "int8": 0.9999}[dtype]


def test_training_lowers_the_loss() -> None:
    inputs = ids_and_types(4)
    target = np.random.default_rng(2).standard_normal((4, LENGTH, WIDTH)).astype(np.float32)
    for arguments in (
        {},
        {"mixing_mechanism": "toeplitz", "router": "tokens_choose", "num_selected_experts": 2},
        {"mixing_mechanism": "circulant", "use_fft": True, "router_dtype": "bfloat16"},
        {"mixing_mechanism": "circulant", "router": "tokens_choose", "dtype": "bfloat16", "jitter_noise": 0.01},
    ):
        encoder = paper_encoder(**arguments, output_dropout=0.0, attention_dropout=0.0)
        optimizer = optimizers.AdamW.paper(0.01)
        losses = []
        for step in range(20):
            outputs, vjp = encoder.vjp(inputs, seed=step)
            difference = outputs["sequence_output"] - target
            losses.append(float(np.square(difference).mean()))
            optimizer.apply_gradients(encoder, vjp({"sequence_output": difference / difference.size}))
        assert losses[-1] < 0.8 * losses[0], arguments


def test_bits_do_not_depend_on_threads_or_repetition() -> None:
    arguments = ARGUMENTS | EXTENSIONS | {"hidden_size": 64, "max_sequence_length": 40}
    inputs = ids_and_types(6, 40)
    calls = []
    for threads in (1, 2, 5):
        encoder = sparse_mixer.SparseMixer(**arguments, num_threads=threads)
        outputs, vjp = encoder.vjp(inputs, seed=3, outputs=["sequence_output", "pooled_output", "encoder_outputs"])
        gradients = vjp({"pooled_output": np.ones((6, 64), np.float32)})
        calls.append((outputs, [gradients[key] for key in gradients]))
    for outputs, gradients in calls[1:]:
        assert_same_outputs(outputs, calls[0][0])
        for one, other in zip(gradients, calls[0][1], strict=True):
            np.testing.assert_array_equal(one, other)
