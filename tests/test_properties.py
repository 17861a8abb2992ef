"""What holds for every encoder and every input, tried on random ones."""

from __future__ import annotations

from typing import Any

import live_cases
import numpy as np
import pytest
import reference_numpy
import sparse_mixer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")

# Encoders are cheap here (some thousand weights), but not free.
few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@st.composite
def configurations(draw: st.DrawFn, /, **fixed: Any) -> dict[str, Any]:
    """Constructor arguments of a small encoder that can be called with any batch."""
    heads = draw(st.integers(1, 3))
    layers = draw(st.integers(1, 3))
    layer_sets = st.sets(st.integers(0, layers - 1)).map(sorted)
    arguments = {
        "vocab_size": draw(st.integers(1, 50)),
        "hidden_size": heads * draw(st.integers(1, 9)),
        "num_layers": layers,
        "moe_layers": draw(layer_sets),
        "attention_layers": draw(layer_sets),
        "num_experts": draw(st.integers(1, 6)),
        "eval_capacity_factor": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "mixing_mechanism": draw(st.sampled_from(["linear", "fourier", "hartley"])),
        "use_fft": draw(st.booleans()),
        "num_attention_heads": heads,
        "max_sequence_length": draw(st.integers(1, 19)),
        "type_vocab_size": draw(st.integers(1, 4)),
        "inner_dim": draw(st.integers(1, 40)),
        "embedding_width": draw(st.one_of(st.none(), st.integers(2, 20))),
        "norm_first": draw(st.booleans()),
        "initializer": {"class_name": "RandomNormal", "config": {"stddev": 0.3}},
        "seed": draw(st.integers(0, 2**32)),
    }
    return arguments | fixed


@st.composite
def extensions(draw: st.DrawFn, /, **fixed: Any) -> dict[str, Any]:
    """The same with everything that TensorFlow's class does not have; each example is a routing group."""
    arguments: dict[str, Any] = draw(configurations(**fixed))
    router = draw(st.sampled_from(["experts_choose", "tokens_choose"]))
    arguments |= {
        "semantics": draw(st.sampled_from(["keras", "paper"])),
        "max_group_size": arguments["max_sequence_length"],
        "mixing_mechanism": draw(st.sampled_from(["linear", "fourier", "hartley", "circulant", "toeplitz"])),
        "router": router,
        "num_selected_experts": draw(st.integers(1, arguments["num_experts"])) if router == "tokens_choose" else 1,
        "batch_prioritized_routing": draw(st.booleans()),
        "router_dtype": draw(st.sampled_from(["float32", "bfloat16"])),
        "min_expert_capacity": draw(st.integers(0, 1)),
        "expert_inner_dim": draw(st.none() | st.integers(1, 40)),
        "pad_id": draw(st.none() | st.integers(-1, arguments["vocab_size"] - 1)),
    }
    return arguments


anything = st.one_of(configurations(), extensions())


def inputs_for(arguments: dict[str, Any], batch: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shape = (batch, arguments["max_sequence_length"])
    return {
        "input_word_ids": rng.integers(0, arguments["vocab_size"], shape),
        "input_mask": live_cases.draw_mask("random", *shape, rng),
        "input_type_ids": rng.integers(0, arguments["type_vocab_size"], shape),
    }


def flatten(outputs: dict[str, Any]) -> list[Array]:
    return [outputs["sequence_output"], outputs["pooled_output"], *outputs["encoder_outputs"]]


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    for x, y in zip(flatten(a), flatten(b), strict=True):
        np.testing.assert_array_equal(x.view(np.uint32), y.view(np.uint32))


@few
@given(anything, st.integers(0, 5))
def test_shapes(arguments: dict[str, Any], batch: int) -> None:
    encoder = sparse_mixer.SparseMixer(**arguments)
    outputs = encoder(inputs_for(arguments, batch))
    length, hidden = arguments["max_sequence_length"], arguments["hidden_size"]
    assert outputs["pooled_output"].shape == (batch, hidden)
    assert len(outputs["encoder_outputs"]) == arguments["num_layers"]
    for output in [outputs["sequence_output"], *outputs["encoder_outputs"]]:
        assert output.shape == (batch, length, hidden)
        assert output.flags.c_contiguous
    assert all(output.dtype == np.float32 for output in flatten(outputs))
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])


@few
@given(configurations(), st.integers(1, 4))
def test_agrees_with_the_formulas(arguments: dict[str, Any], batch: int) -> None:
    """Far looser than the parity tests, but on any configuration and without TensorFlow."""
    # Layer norms over a few nearly equal numbers amplify rounding without bound.
    assume(arguments["hidden_size"] >= 4)
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, batch)
    names = [weight.key for weight in encoder.weights]
    with np.errstate(all="ignore"):
        exact = reference_numpy.encode(arguments, encoder.get_weights(), names, inputs)
    assume(exact.router_margin > 1e-4)
    for output, expected in zip(encoder(inputs)["encoder_outputs"], exact.encoder_outputs, strict=True):
        np.testing.assert_allclose(output, expected, atol=2e-3 * np.abs(expected).max(initial=1))


@few
@given(anything, st.data())
def test_an_example_does_not_depend_on_its_batch(arguments: dict[str, Any], data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 9))
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, batch)
    together = encoder(inputs)
    rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=12))
    chosen = encoder({key: value[rows] for key, value in inputs.items()})
    for ours, theirs in zip(flatten(chosen), flatten(together), strict=True):
        np.testing.assert_array_equal(ours.view(np.uint32), theirs[rows].view(np.uint32))


@few
@given(anything, st.integers(1, 6), st.booleans())
def test_threads_do_not_change_a_bit(arguments: dict[str, Any], batch: int, training: bool) -> None:
    arguments["train_capacity_factor"] = arguments["eval_capacity_factor"]
    encoder = sparse_mixer.SparseMixer(**arguments, num_threads=1)
    inputs = inputs_for(arguments, batch)
    alone = encoder(inputs, training=training, seed=3)
    for threads in (2, 3, 8):
        encoder.num_threads = threads
        assert_same_bits(encoder(inputs, training=training, seed=3), alone)


@few
@given(configurations(examples_per_group=2.0), st.integers(1, 4))
def test_whole_groups_are_independent(arguments: dict[str, Any], pairs: int) -> None:
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, 2 * pairs)
    together = encoder(inputs)
    first = encoder({key: value[:2] for key, value in inputs.items()})
    for ours, theirs in zip(flatten(first), flatten(together), strict=True):
        np.testing.assert_array_equal(ours.view(np.uint32), theirs[:2].view(np.uint32))


@few
@given(configurations(), st.integers(1, 3))
def test_routing(arguments: dict[str, Any], batch: int) -> None:
    """Every expert takes exactly C different tokens, none of which is less probable than one it left."""
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, batch)
    routings = encoder(inputs, outputs=("routing",))["routing"]
    assert len(routings) == len(arguments["moe_layers"])
    experts, tokens = arguments["num_experts"], arguments["max_sequence_length"]
    capacity = reference_numpy.expert_capacity(arguments["eval_capacity_factor"], tokens, experts)
    for layer, routing in enumerate(routings):
        indices, probabilities = routing["indices"], routing["probabilities"]
        assert indices.shape == (batch, experts, capacity)
        assert probabilities.shape == (batch, tokens, experts)
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
        picked = np.zeros((batch, experts, tokens), bool)
        np.put_along_axis(picked, indices, True, axis=-1)
        assert (picked.sum(axis=-1) == capacity).all()
        by_expert = probabilities.transpose(0, 2, 1)
        # A stable sort by falling probability puts the lowest index first among equals.
        order = np.argsort(-by_expert, axis=-1, kind="stable")[..., :capacity]
        expected = np.zeros_like(picked)
        np.put_along_axis(expected, order, True, axis=-1)
        np.testing.assert_array_equal(picked, expected)
        if capacity:
            left_behind = 1 - picked.any(axis=1).mean()
            aux = encoder.aux_losses
            assert aux["fraction_tokens_left_behind"][layer] == pytest.approx(left_behind, abs=1e-6)
            assert aux["router_confidence"][layer] == pytest.approx(by_expert[picked].mean(), rel=1e-5)


@few
@given(configurations(attention_layers=[], num_experts=2), st.integers(1, 3))
def test_mask_acts_in_attention_only(arguments: dict[str, Any], batch: int) -> None:
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, batch)
    assert_same_bits(encoder(inputs), encoder(inputs | {"input_mask": np.zeros_like(inputs["input_mask"])}))


@few
@given(
    configurations(num_layers=1, moe_layers=[], attention_layers=[0], max_sequence_length=11, hidden_size=12),
    st.integers(1, 10),
)
def test_masked_positions_are_not_seen_by_others(arguments: dict[str, Any], visible: int) -> None:
    arguments["num_attention_heads"] = 3
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, 2)
    inputs["input_mask"] = np.tile((np.arange(11) < visible).astype(np.int32), (2, 1))
    before = encoder(inputs)["sequence_output"]
    changed = inputs["input_word_ids"].copy()
    changed[:, visible:] = (changed[:, visible:] + 1) % arguments["vocab_size"]
    after = encoder(inputs | {"input_word_ids": changed})["sequence_output"]
    np.testing.assert_array_equal(before[:, :visible], after[:, :visible])


@few
@given(anything, st.integers(1, 4))
def test_inputs_are_left_alone_and_calls_repeat(arguments: dict[str, Any], batch: int) -> None:
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, batch)
    copies = {key: value.copy() for key, value in inputs.items()}
    first = encoder(inputs)
    assert_same_bits(first, encoder(inputs))
    for key, value in inputs.items():
        np.testing.assert_array_equal(value, copies[key])


@few
@given(anything, st.integers(1, 3))
def test_asking_for_less_gives_the_same(arguments: dict[str, Any], batch: int) -> None:
    encoder = sparse_mixer.SparseMixer(**arguments)
    inputs = inputs_for(arguments, batch)
    full = encoder(inputs)
    for name in ("sequence_output", "pooled_output"):
        (value,) = encoder(inputs, outputs=(name,)).values()
        np.testing.assert_array_equal(value.view(np.uint32), full[name].view(np.uint32))


@few
@given(anything, st.integers(1, 3))
def test_weights_make_the_encoder(arguments: dict[str, Any], batch: int) -> None:
    """Weights carried to an encoder with another seed give the same outputs; so does the configuration."""
    encoder = sparse_mixer.SparseMixer(**arguments)
    other = sparse_mixer.SparseMixer.from_config(encoder.get_config() | {"seed": 1})
    other.set_weights(encoder.get_weights())
    inputs = inputs_for(arguments, batch)
    assert_same_bits(encoder(inputs), other(inputs))
