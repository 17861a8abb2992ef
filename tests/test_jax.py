"""`sparse_mixer.jax`: the encoder as a function that JAX compiles, differentiates and maps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from encoders import VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from sparse_mixer import SparseMixer, _bridge
from sparse_mixer.jax import apply, init_params

jax = pytest.importorskip("jax")
jnp = jax.numpy

NO_DROPOUT = {"output_dropout": 0.0, "attention_dropout": 0.0}
DROPOUT = {"output_dropout": 0.2, "attention_dropout": 0.1, "jitter_noise": 0.1}


def pushed() -> Any:
    """Counts what is copied into cores: the numbers of weights that each call brings."""
    counts: list[int] = []
    update = _bridge.Bridge._update

    def counted(bridge: Any, weights: Any, hold: bool) -> None:
        before = bridge.encoder.weights_version
        update(bridge, weights, hold)
        counts.append(bridge.encoder.weights_version - before)

    return mock.patch.object(_bridge.Bridge, "_update", counted), counts


def passes(call: Callable[[], Any]) -> tuple[int, int]:
    """How many forward passes `call` makes without and with a record."""
    with (
        mock.patch.object(SparseMixer, "forward", autospec=True, side_effect=SparseMixer.forward) as plain,
        mock.patch.object(SparseMixer, "vjp", autospec=True, side_effect=SparseMixer.vjp) as recorded,
    ):
        jax.block_until_ready(call())
    return plain.call_count, recorded.call_count


def loss_of(encoder: SparseMixer, inputs: dict[str, Any], **options: Any) -> Callable[[Any], Any]:
    """A scalar that depends on all outputs and the auxiliary losses."""

    def loss(params: Any) -> Any:
        found = apply(encoder, params, inputs, **options)
        first, *_ = found["encoder_outputs"]
        return (
            (found["pooled_output"] ** 2).sum()
            + jnp.sin(found["sequence_output"]).sum()
            + (first[:, :2] ** 2).sum()
            + 3.0 * found["aux_loss"]
        )

    return loss


def expected_gradients(encoder: SparseMixer, inputs: dict[str, Any], **options: Any) -> Any:
    outputs, vjp = encoder.vjp(inputs, **options)
    first = np.zeros_like(outputs["encoder_outputs"][0])
    first[:, :2] = 2 * outputs["encoder_outputs"][0][:, :2]
    d_outputs = {
        "pooled_output": 2 * outputs["pooled_output"],
        "sequence_output": np.cos(outputs["sequence_output"]),
        "encoder_outputs": [first, None, None],
    }
    return vjp(d_outputs, aux_loss_weight=3.0)


def assert_close(gradients: Any, expected: Any) -> None:
    assert list(gradients) == sorted(expected)
    for key, value in expected.items():
        # Biases of keys have no gradient but rounding.
        scale = max(np.abs(value).max(), 1e-2)
        np.testing.assert_allclose(np.asarray(gradients[key]) / scale, value / scale, rtol=0, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("changes", [{}, {"output_range": 3, "mixing_mechanism": "fourier"}, {"with_pooler": False}])
def test_outputs_have_the_bits_of_the_direct_call(changes: dict[str, Any], compiled: bool) -> None:
    encoder, inputs = small_encoder(**changes), small_inputs()
    params = init_params(encoder)

    def call(params: Any, inputs: Any) -> Any:
        return apply(encoder, params, inputs)

    found = (jax.jit(call) if compiled else call)(params, inputs)
    expected = encoder(inputs)
    assert set(found) == {*expected, "aux_loss", "router_metrics"}
    for name, output in expected.items():
        both = (value if isinstance(value, list) else [value] for value in (found[name], output))
        for one, other in zip(*both, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(found["aux_loss"], encoder.aux_losses["total"], rtol=1e-6)
    for name, values in found["router_metrics"].items():
        np.testing.assert_array_equal(values, encoder.aux_losses[name], err_msg=name)


def test_other_parameters_than_the_encoders_are_used() -> None:
    encoder, other = small_encoder(), small_encoder(seed=8)
    before = encoder.get_weights()
    call = jax.jit(lambda params: apply(encoder, params, small_inputs())["pooled_output"])
    np.testing.assert_array_equal(call(init_params(other)), other(small_inputs())["pooled_output"])
    np.testing.assert_array_equal(call(init_params(encoder)), encoder(small_inputs())["pooled_output"])
    for one, two in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("changes", [{}, {"attention_layers": (), "moe_layers": (0, 2)}])
def test_gradients_are_those_of_vjp(changes: dict[str, Any], compiled: bool) -> None:
    encoder, inputs = small_encoder(**NO_DROPOUT, **changes), small_inputs()
    gradient = jax.grad(loss_of(encoder, inputs, training=True))
    found = (jax.jit(gradient) if compiled else gradient)(init_params(encoder))
    assert_close(found, expected_gradients(encoder, inputs, training=True))


def test_gradients_of_inputs_and_of_some_parameters() -> None:
    encoder = small_encoder()
    params, inputs = init_params(encoder), small_inputs()
    ids = inputs.pop("input_word_ids")
    rows = np.asarray(params["word_embeddings/embeddings"])[ids]

    @jax.jit
    def loss(bias: Any, rows: Any) -> Any:
        found = apply(encoder, params | {"pooler_transform/bias": bias}, {**inputs, "input_word_embeddings": rows})
        return found["pooled_output"].sum()

    with mock.patch.object(SparseMixer, "vjp", autospec=True, side_effect=SparseMixer.vjp) as recorded:
        found = jax.grad(loss, argnums=(0, 1))(params["pooler_transform/bias"], rows)
    assert recorded.call_args.kwargs["wrt"] == ("input_word_embeddings", "pooler_transform/bias")
    _, vjp = encoder.vjp({**inputs, "input_word_embeddings": rows}, training=False)
    expected = vjp({"pooled_output": np.ones((2, WIDTH), np.float32)})
    np.testing.assert_allclose(found[0], expected["pooler_transform/bias"], atol=1e-6)
    np.testing.assert_allclose(found[1], expected["input_word_embeddings"], atol=1e-6)


def test_a_gradient_takes_one_forward_pass() -> None:
    encoder, params = small_encoder(), init_params(small_encoder())
    step = jax.jit(jax.value_and_grad(loss_of(encoder, small_inputs())))
    assert passes(lambda: step(params)) == (0, 1)
    assert passes(lambda: step(params)) == (0, 1)
    assert passes(lambda: jax.value_and_grad(loss_of(encoder, small_inputs()))(params)) == (0, 1)


def test_records_that_are_gone_or_used_are_made_again() -> None:
    encoder = small_encoder(**DROPOUT)
    params, key = init_params(encoder), jax.random.key(3)
    inputs = [small_inputs(seed=number) for number in range(5)]

    def call(params: Any, number: int) -> Any:
        return apply(encoder, params, inputs[number], training=True, key=key)["sequence_output"]

    one = [jax.vjp(lambda p, n=n: call(p, n), params) for n in range(5)]
    ones = jnp.ones_like(one[0][0])
    # All forward passes come first here, and one record is asked for twice; there are fewer kept.
    for number in (1, 4, 0, 3, 2, 2):
        found = one[number][1](ones)[0]
        expected = jax.grad(lambda p, n=number: call(p, n).sum())(params)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{number} {name}")
    bridge = _bridge_of(encoder)
    for _ in range(4):
        jax.vjp(lambda p: call(p, 0), params)
    assert len(bridge._remembered) <= 2


def _bridge_of(encoder: SparseMixer) -> Any:
    from sparse_mixer import jax as adapter

    return adapter._bridges[encoder]


def test_rematerialised_and_repeated_calls_have_the_same_gradients() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    loss, params = loss_of(encoder, inputs), init_params(encoder)
    expected = jax.grad(loss)(params)
    found = jax.jit(jax.grad(lambda p: jax.checkpoint(loss)(p) + loss(p)))(params)
    for name in expected:
        np.testing.assert_allclose(found[name], 2 * expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_optax_learns_under_jit() -> None:
    optax = pytest.importorskip("optax")
    encoder, inputs = small_encoder(), small_inputs(batch=8)
    labels = jnp.arange(8) % 2
    params = {"encoder": init_params(encoder), "head": jnp.zeros((WIDTH, 2))}
    optimizer = optax.adamw(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            found = apply(encoder, params["encoder"], inputs, training=True, key=key)
            logits = found["pooled_output"] @ params["head"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + found["aux_loss"]

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    patch, counts = pushed()
    losses = []
    with patch:
        for number in range(20):
            params, state, value = step(params, state, jax.random.key(number))
            losses.append(float(value))
    assert losses[-1] < 0.6 * losses[0]
    # Every step brings new weights, but for the first, whose weights are the encoder's.
    assert counts == [0] + [1] * 19


def test_unchanged_parameters_are_not_copied_again() -> None:
    encoder = small_encoder()
    params = init_params(encoder)
    call = jax.jit(lambda params: apply(encoder, params, small_inputs())["pooled_output"])
    patch, counts = pushed()
    with patch:
        jax.block_until_ready(call(params))
        jax.block_until_ready(call(jax.tree.map(lambda x: x + 0, params)))
        name = "transformer/layer_1/moe/experts/output/kernel"
        changed = params | {name: params[name].at[-1, -1, -1].add(1e-3)}
        jax.block_until_ready(call(changed))
        again = call(changed)
    assert counts == [0, 0, 1, 0]
    other = small_encoder()
    other.set_weights([np.asarray(changed[variable.key]) for variable in other.weights])
    np.testing.assert_array_equal(again, other(small_inputs())["pooled_output"])


def test_vmap_calls_for_each_example() -> None:
    encoder, params = small_encoder(**DROPOUT), init_params(small_encoder())
    inputs = small_inputs(batch=3)
    keys = jax.random.split(jax.random.key(0), 3)

    def one(params: Any, inputs: Any, key: Any) -> Any:
        batch = {name: array[None] for name, array in inputs.items()}
        found = apply(encoder, params, batch, training=True, key=key)
        return found["pooled_output"][0].sum() + found["aux_loss"]

    single = jax.value_and_grad(one)
    found = jax.jit(jax.vmap(single, in_axes=(None, 0, 0)))(params, inputs, keys)
    for number in range(3):
        example = {name: array[number] for name, array in inputs.items()}
        value, gradients = single(params, example, keys[number])
        np.testing.assert_allclose(found[0][number], value, rtol=1e-6)
        for name in gradients:
            np.testing.assert_allclose(found[1][name][number], gradients[name], atol=1e-6, err_msg=name)


def test_keys_decide_dropout() -> None:
    encoder, inputs = small_encoder(**DROPOUT), small_inputs()
    params = init_params(encoder)

    @jax.jit
    def call(key: Any) -> Any:
        return apply(encoder, params, inputs, training=True, key=key)["sequence_output"]

    one, two = jax.random.split(jax.random.key(5))
    np.testing.assert_array_equal(call(one), call(one))
    assert not np.array_equal(call(one), call(two))
    high, low = (int(half) for half in jax.random.bits(one, (2,), "uint32"))
    expected = encoder(inputs, training=True, seed=high << 32 | low)["sequence_output"]
    np.testing.assert_array_equal(call(one), expected)
    with pytest.raises(ValueError, match=r"^key: the encoder has output_dropout, attention_dropout, jitter_noise"):
        apply(encoder, params, inputs, training=True)
    apply(encoder, params, inputs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.update(encoder="x"), TypeError, r"^encoder: expected a SparseMixer, got str"),
        (lambda a: a.update(params=[1]), TypeError, r"^params: expected a dict"),
        (
            lambda a: a["params"].pop("pooler_transform/bias"),
            ValueError,
            r"^params: missing \['pooler_transform/bias'\]",
        ),
        (lambda a: a["params"].update(odd=1.0), ValueError, r"unknown \['odd'\]"),
        (
            lambda a: a["params"].update({"pooler_transform/bias": np.zeros(3)}),
            ValueError,
            r"^params\['pooler_transform/bias'\]: got shape \(3,\), expected \(16,\)",
        ),
        (
            lambda a: a["params"].update({"pooler_transform/bias": np.zeros(16, int)}),
            TypeError,
            r"^params\['pooler_transform/bias'\]: got int",
        ),
        (lambda a: a.update(inputs=[1]), TypeError, r"^inputs: expected a dict"),
        (lambda a: a["inputs"].pop("input_word_ids"), ValueError, r"^inputs: input_word_ids is missing"),
        (lambda a: a["inputs"].pop("input_type_ids"), ValueError, r"^inputs: input_type_ids is missing"),
        (lambda a: a["inputs"].pop("input_mask"), ValueError, r"^inputs: input_mask is missing"),
        (
            lambda a: a["inputs"].update(input_word_ids=np.zeros(8, int)),
            ValueError,
            r"^inputs\['input_word_ids'\]: got shape \(8,\), expected 2 axes; jax.vmap",
        ),
        (lambda a: a["inputs"].update(input_word_ids=np.zeros((2, 8))), TypeError, r"^inputs\['input_word_ids'\]: got"),
        (lambda a: a.update(outputs=["hidden"]), ValueError, r"^outputs: got \['hidden'\]"),
        (lambda a: a.update(training="yes"), TypeError, r"^training"),
        (
            lambda a: a["inputs"].update(input_word_ids=np.full((2, 8), VOCAB_SIZE)),
            Exception,
            r"input_word_ids: got id 50 at position",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_arguments_are_named(change: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    encoder = small_encoder()
    arguments: dict[str, Any] = {"encoder": encoder, "params": init_params(encoder), "inputs": small_inputs()}
    change(arguments)
    with pytest.raises(error, match=message):
        jax.block_until_ready(
            apply(arguments.pop("encoder"), arguments.pop("params"), arguments.pop("inputs"), **arguments)
        )


def test_other_derivatives_are_refused() -> None:
    encoder = small_encoder()
    params, loss = init_params(encoder), loss_of(encoder, small_inputs())
    with pytest.raises(TypeError, match=r"can't apply forward-mode .* \(jvp\)"):
        jax.jvp(loss, (params,), (params,))
    with pytest.raises(NotImplementedError, match="SparseMixer: gradients of gradients are not available in JAX"):
        jax.grad(lambda p: jax.grad(loss)(p)["pooler_transform/bias"].sum())(params)
    with_layer = small_encoder(embedding_layer=lambda ids: np.zeros((*ids.shape, WIDTH), np.float32))
    with pytest.raises(ValueError, match=r"^encoder: has an embedding layer"):
        init_params(with_layer)


def test_importing_the_package_does_not_import_jax() -> None:
    program = "import sys, sparse_mixer, sparse_mixer.jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
