"""The module of PyTorch beside the direct call: same bits, same gradients, parameters."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from sparse_mixer import SparseMixer as Encoder
from sparse_mixer import release_scratch
from torch_cases import OUTPUTS, SIZES, arrays, grads, tensors
from torch_reference import torch

from sparse_mixer.torch import SparseMixer  # isort: skip


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(**SIZES, seed=3)


@pytest.fixture
def module(encoder: Encoder) -> SparseMixer:
    return encoder.as_torch_module()


# Numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output_range": 2},
        {"embedding_width": 4, "norm_first": True},
        {"dtype": "bfloat16"},
        {"with_pooler": False, "moe_layers": ()},
        {"semantics": "paper", "attention_layers": (0, 1, 2), "moe_layers": (1,)},
    ],
    ids=str,
)
def test_same_bits_as_the_direct_call(changes: dict[str, Any]) -> None:
    encoder = Encoder(**{**SIZES, **changes}, seed=3)
    module, inputs = SparseMixer(encoder), arrays(encoder)
    for training in (False, True):
        module.train(training)
        expected, vjp = encoder.vjp(inputs, training=training, seed=7)
        got = module(tensors(inputs), seed=7)
        assert [*got][: len(expected)] == [*expected]
        flat = {**got, **{f"block {i}": block for i, block in enumerate(got["encoder_outputs"])}}
        flat_expected = {**expected, **{f"block {i}": block for i, block in enumerate(expected["encoder_outputs"])}}
        for name, array in flat_expected.items():
            if name != "encoder_outputs":
                np.testing.assert_array_equal(flat[name].detach().numpy(), array)
        assert got["aux_loss"].item() == vjp.aux["total"]
        if encoder.arguments.layers_within("moe_layers"):
            for name, tensor in got["router_metrics"].items():
                np.testing.assert_array_equal(tensor.numpy(), vjp.aux[name])
        with torch.no_grad():
            np.testing.assert_array_equal(module(inputs, seed=7)["sequence_output"], expected["sequence_output"])
        last = flat["sequence_output"]
        module.zero_grad()
        cotangent = np.random.default_rng(1).normal(size=last.shape).astype(np.float32)
        ((last * torch.from_numpy(cotangent)).sum() + 3 * got["aux_loss"]).backward()
        theirs = vjp({"sequence_output": cotangent}, aux_loss_weight=3)
        ours = grads(module)
        assert {key for key in theirs if not key.startswith("pooler")} == set(ours)
        for key, array in ours.items():
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@pytest.mark.parametrize("number", range(10))
def test_gradients_are_slopes(number: int) -> None:
    """Finite differences along random directions, in float32, on random configurations."""
    rng = np.random.default_rng(number)
    layers = int(rng.integers(1, 4))
    encoder = Encoder(
        20,
        hidden_size=8,
        num_layers=layers,
        moe_layers=(),
        attention_layers=tuple(int(i) for i in range(layers) if rng.random() < 0.5),
        num_attention_heads=int(rng.choice([1, 2, 4])),
        mixing_mechanism=str(rng.choice(["linear", "fourier", "hartley"])),
        inner_dim=12,
        max_sequence_length=4,
        embedding_width=[None, 4][rng.integers(2)],
        norm_first=bool(rng.integers(2)),
        initializer={"class_name": "RandomNormal", "config": {"stddev": 0.5}},
        layer_norm_epsilon=1e-3,
        seed=number,
    )
    module = SparseMixer(encoder).eval()
    inputs = tensors(arrays(encoder, 2, number))
    generator = torch.Generator().manual_seed(number)
    weights = torch.randn(2, 4, 8, generator=generator)
    pooled = torch.randn(2, 8, generator=generator)

    def loss() -> Any:
        outputs = module(inputs)
        return (outputs["sequence_output"].double() * weights).sum() + (outputs["pooled_output"] * pooled).sum()

    loss().backward()
    parameters = [p for p in module.parameters() if p.grad is not None]
    directions = [torch.randn(p.shape, generator=generator) for p in parameters]
    slope = sum((p.grad.double() * d).sum().item() for p, d in zip(parameters, directions, strict=True))
    step, values = 1e-3, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
            values.append(loss().item())
    size = sum(p.grad.norm().item() ** 2 for p in parameters) ** 0.5
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, abs=0.01 * size)


@pytest.mark.parametrize("outputs", [("pooled_output",), ("encoder_outputs",), OUTPUTS])
def test_gradients_of_every_output(encoder: Encoder, module: SparseMixer, outputs: tuple[str, ...]) -> None:
    inputs, rng = arrays(encoder), np.random.default_rng(0)
    results, vjp = encoder.vjp(inputs, seed=1)
    got = module(inputs, outputs=outputs, seed=1)
    assert {*got} == {*outputs, "aux_loss", "router_metrics"}
    cotangents: dict[str, Any] = {"encoder_outputs": [None, None, None]}
    loss = 0
    if "pooled_output" in outputs:
        cotangents["pooled_output"] = rng.normal(size=results["pooled_output"].shape).astype(np.float32)
        loss = loss + (got["pooled_output"] * torch.from_numpy(cotangents["pooled_output"])).sum()
    if "encoder_outputs" in outputs:
        # The first block alone, so that what lies above it has no gradient.
        cotangents["encoder_outputs"][0] = rng.normal(size=results["encoder_outputs"][0].shape).astype(np.float32)
        loss = loss + (got["encoder_outputs"][0] * torch.from_numpy(cotangents["encoder_outputs"][0])).sum()
    loss.backward()
    expected, ours = vjp(cotangents, aux_loss_weight=0), grads(module)
    above = {key for key in expected if key.startswith(("transformer/layer_1", "transformer/layer_2", "pooler"))}
    assert set(expected) - set(ours) == (set() if "pooled_output" in outputs else above)
    for key, array in ours.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


def test_gradients_of_inputs(encoder: Encoder, module: SparseMixer) -> None:
    inputs, rng = arrays(encoder), np.random.default_rng(0)
    words = torch.from_numpy(rng.normal(size=(4, 4, 8)).astype(np.float32)).requires_grad_()
    dense = torch.from_numpy(rng.normal(size=(4, 2, 8))).requires_grad_()
    parts = {
        "input_word_embeddings": words,
        "input_mask": inputs["input_mask"][:, :4],
        "input_type_ids": inputs["input_type_ids"][:, :4],
        "dense_inputs": dense,
        "dense_mask": np.ones((4, 2), bool),
        "dense_type_ids": inputs["input_type_ids"][:, 4:],
    }
    module(parts, seed=1)["sequence_output"].square().sum().backward()
    direct = {**parts, "input_word_embeddings": words.detach().numpy(), "dense_inputs": dense.detach().numpy()}
    results, vjp = encoder.vjp({**direct, "dense_mask": np.ones((4, 2))}, seed=1)
    expected = vjp({"sequence_output": 2 * results["sequence_output"]}, aux_loss_weight=0)
    np.testing.assert_array_equal(words.grad, expected["input_word_embeddings"])
    assert dense.grad.dtype == torch.float64
    np.testing.assert_array_equal(dense.grad, expected["dense_inputs"])


def test_twenty_steps_of_adamw(encoder: Encoder) -> None:
    """To the bit as with gradients of the direct call, in tensors that have nothing to do with the module."""
    module, inputs = SparseMixer(encoder), arrays(encoder)
    target = torch.from_numpy(np.random.default_rng(5).normal(size=(4, 6, 8)).astype(np.float32))
    values = [torch.from_numpy(array).requires_grad_() for array in encoder.get_weights()]
    options = {"lr": 0.01, "weight_decay": 0.1}
    expected, optimizer = torch.optim.AdamW(values, **options), torch.optim.AdamW(module.parameters(), **options)
    losses = []
    for seed in range(20):
        outputs, vjp = encoder.vjp(inputs, seed=seed, outputs=("sequence_output",))
        sequence = torch.from_numpy(outputs["sequence_output"]).requires_grad_()
        torch.nn.functional.mse_loss(sequence, target).backward()
        gradients = vjp({"sequence_output": sequence.grad.numpy()})
        for variable, tensor in zip(encoder.weights, values, strict=True):
            if not variable.key.startswith("pooler"):
                tensor.grad = torch.from_numpy(gradients[variable.key])
        expected.step()
        encoder.set_weights([tensor.detach().numpy() for tensor in values])
        optimizer.zero_grad()
        results = module(tensors(inputs), seed=seed, outputs=("sequence_output",))
        loss = torch.nn.functional.mse_loss(results["sequence_output"], target)
        (loss + results["aux_loss"]).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for variable, tensor in zip(encoder.weights, values, strict=True):
        assert torch.equal(module.get_parameter(variable.key.replace("/", ".")), tensor), variable.key


# Parameters ---------------------------------------------------------------------------------------------------------


def test_parameters_are_named_and_ordered_as_in_keras(encoder: Encoder, module: SparseMixer) -> None:
    names = [name for name, _ in module.named_parameters()]
    assert sorted(names) == sorted(w.key.replace("/", ".") for w in encoder.weights)
    assert [name.replace(".", "/") for name in module.state_dict()][:3] == [w.key for w in encoder.weights][:3]
    # One memory with numpy: what is written there is there.
    bias = module.transformer.layer_0.intermediate.bias
    bias.detach().numpy()[:] = 7
    assert bias[0].item() == 7
    back = module.to_encoder()
    back_values = dict(zip((w.key for w in back.weights), back.get_weights(), strict=True))
    assert (back_values["transformer/layer_0/intermediate/bias"] == 7).all()
    assert back.get_config() == encoder.get_config() == module.get_config()


def test_unchanged_weights_are_not_copied_again(encoder: Encoder, module: SparseMixer) -> None:
    inputs = tensors(arrays(encoder))
    core = module._engine._encoder
    version = core.weights_version
    module(inputs)["sequence_output"].sum().backward()
    module.eval()(inputs)
    assert core.weights_version == version
    torch.optim.SGD(module.parameters(), 0.1).step()
    module(inputs)
    assert core.weights_version > version
    version = core.weights_version
    module(inputs)
    assert core.weights_version == version


def replaced(parameter: Any) -> None:
    parameter.data = parameter.data + 1


def written_through_data(parameter: Any) -> None:
    parameter.data.add_(1)


def written_in_place(parameter: Any) -> None:
    with torch.no_grad():
        parameter.add_(1)


@pytest.mark.parametrize("change", [replaced, written_through_data, written_in_place])
def test_every_change_of_weights_is_noticed(encoder: Encoder, module: SparseMixer, change: Any) -> None:
    inputs = arrays(encoder)
    module.eval()(inputs)
    for parameter in module.parameters():
        change(parameter)
    encoder.set_weights([w + 1 for w in encoder.get_weights()])
    np.testing.assert_array_equal(module(inputs)["pooled_output"].detach(), encoder(inputs)["pooled_output"])
    change(module.pooler_transform.bias)
    changed = encoder.get_weights()
    changed[-1] = changed[-1] + 1
    encoder.set_weights(changed)
    np.testing.assert_array_equal(module(inputs)["pooled_output"].detach(), encoder(inputs)["pooled_output"])


def test_rows_written_behind_pytorchs_back(encoder: Encoder, module: SparseMixer) -> None:
    inputs = arrays(encoder)
    before = module.eval()(inputs)["pooled_output"]
    module.word_embeddings.embeddings.data[inputs["input_word_ids"][0, 0]] += 1
    module.weights_changed()
    assert not torch.equal(module(inputs)["pooled_output"], before)


def test_state_dict(encoder: Encoder, module: SparseMixer) -> None:
    other, inputs = SparseMixer(**SIZES), arrays(encoder)
    assert not torch.equal(other.eval()(inputs)["pooled_output"], module.eval()(inputs)["pooled_output"])
    for assign in (False, True):
        fresh = SparseMixer(**SIZES).eval()
        fresh(inputs)
        fresh.load_state_dict(module.state_dict(), assign=assign)
        assert torch.equal(fresh(inputs)["pooled_output"], module(inputs)["pooled_output"])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert other.load_state_dict(torch.load(file)).missing_keys == []


def test_frozen_parameters(encoder: Encoder, module: SparseMixer) -> None:
    module.word_embeddings.requires_grad_(False)
    module.transformer.layer_0.requires_grad_(False)
    module(arrays(encoder))["pooled_output"].sum().backward()
    got = grads(module)
    assert not any(key.startswith(("word_embeddings", "transformer/layer_0/")) for key in got)
    assert "transformer/layer_1/moe/router/router_weights/kernel" in got
    frozen = SparseMixer(Encoder(**SIZES, trainable=False))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen(arrays(encoder))["pooled_output"].requires_grad


def test_gradients_are_taken_over_and_their_memory_used_again(encoder: Encoder) -> None:
    module = SparseMixer(Encoder(**{**SIZES, "vocab_size": 40_000}, seed=0))
    inputs, addresses = tensors(arrays(encoder)), set()
    release_scratch()  # buffers of other tests would be taken in turn
    for _ in range(3):
        module.zero_grad()
        module(inputs)["sequence_output"].sum().backward()
        addresses.add(module.word_embeddings.embeddings.grad.data_ptr())
    # Not from one step to the next, where PyTorch would have made copies.
    (memory,) = addresses
    kept = module.word_embeddings.embeddings.grad
    module.zero_grad()
    before = kept.clone()
    module(inputs)["sequence_output"].square().sum().backward()
    assert module.word_embeddings.embeddings.grad.data_ptr() != memory
    assert torch.equal(kept, before)


def test_gradients_are_added_up_and_clipped(encoder: Encoder, module: SparseMixer) -> None:
    inputs = arrays(encoder)
    module(inputs, seed=1)["sequence_output"].sum().backward()
    once = grads(module)
    module(inputs, seed=1)["sequence_output"].sum().backward()
    for key, array in grads(module).items():
        np.testing.assert_allclose(array, 2 * once[key], rtol=1e-6)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    norm = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in grads(module).values()))
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_tied_head(encoder: Encoder, module: SparseMixer) -> None:
    head = torch.nn.Linear(8, 50, bias=False)
    head.weight = module.get_embedding_table()
    loss = head(module(arrays(encoder), seed=1)["sequence_output"]).sum()
    loss.backward()
    tied = module.get_embedding_table().grad.clone()
    module.zero_grad()
    alone = module(arrays(encoder), seed=1)["sequence_output"]
    (alone @ head.weight.detach().T).sum().backward()
    expected = head.weight.grad + alone.detach().sum((0, 1))
    np.testing.assert_allclose(tied, expected, atol=1e-5)


def test_embedding_layer_of_pytorch(encoder: Encoder) -> None:
    table = torch.nn.Embedding(50, 8)
    module = SparseMixer(**SIZES, embedding_layer=table, seed=3)
    inputs = arrays(encoder)
    module(inputs)["sequence_output"].sum().backward()
    assert table.weight.grad is not None
    assert module.get_embedding_table() is table.weight
    weights = encoder.get_weights()
    weights[0] = table.weight.detach().numpy()
    encoder.set_weights(weights)
    got = module.eval()(inputs)["pooled_output"].detach()
    np.testing.assert_array_equal(got, encoder(inputs)["pooled_output"])
    twin = pickle.loads(pickle.dumps(module))
    assert torch.equal(twin(inputs)["pooled_output"], got)
