"""The module of PyTorch beside the direct call: same bits, same gradients, and PyTorch's own ways of using modules."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import io
import pickle
import threading
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
from sparse_mixer import SparseMixer as Encoder
from sparse_mixer import release_scratch
from torch_reference import torch

from sparse_mixer.torch import SparseMixer  # isort: skip

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_layers": 3,
    "moe_layers": (1,),
    "attention_layers": (2,),
    "num_experts": 2,
    "num_attention_heads": 2,
    "inner_dim": 16,
    "max_sequence_length": 6,
    "router_z_loss_weight": 0.1,
}
OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")


def arrays(encoder: Encoder, batch: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = encoder.arguments
    shape = (batch, a.max_sequence_length)
    return {
        "input_word_ids": rng.integers(0, a.vocab_size, shape),
        "input_mask": rng.integers(0, 2, shape) | (np.arange(shape[1]) == 0),
        "input_type_ids": rng.integers(0, a.type_vocab_size, shape),
    }


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def grads(module: Any) -> dict[str, np.ndarray]:
    named = module.named_parameters()
    return {name.replace(".", "/"): p.grad.numpy().copy() for name, p in named if p.grad is not None}


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


# PyTorch's ways -----------------------------------------------------------------------------------------------------


def test_manual_seed_decides() -> None:
    def numbers() -> tuple[Any, Any, Any]:
        torch.manual_seed(11)
        module = SparseMixer(**SIZES)
        inputs = arrays(module._engine._encoder)
        first, second = (module(inputs)["sequence_output"] for _ in range(2))
        return module.word_embeddings.embeddings, first, second

    table, first, second = numbers()
    for ours, again in zip((table, first, second), numbers(), strict=True):
        assert torch.equal(ours, again)
    assert not torch.equal(first, second)
    assert not torch.equal(SparseMixer(**SIZES).word_embeddings.embeddings, table)


def test_copies_also_after_training(encoder: Encoder, module: SparseMixer) -> None:
    inputs = arrays(encoder)
    module(inputs)["sequence_output"].sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    expected = module.eval()(inputs)["pooled_output"]
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(twin.eval()(inputs)["pooled_output"], expected)
        twin(inputs)["pooled_output"].sum().backward()
        with torch.no_grad():
            twin.pooler_transform.bias.add_(1)
        assert torch.equal(module(inputs)["pooled_output"], expected)
        assert twin.word_embeddings.embeddings.grad is not module.word_embeddings.embeddings.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_refused(module: SparseMixer, encoder: Encoder, dtype: Any) -> None:
    with pytest.raises(TypeError, match="float32 on the CPU"):
        torch.nn.Sequential(module).to(dtype)
    with pytest.raises(TypeError, match="float32 on the CPU"):
        module.to("meta")
    assert module.to(torch.float32).to("cpu") is module
    module.pooler_transform.bias = torch.nn.Parameter(torch.zeros(8, dtype=dtype))
    with pytest.raises(TypeError, match="bias: got a parameter of"):
        module(arrays(encoder))


def test_wrong_inputs(module: SparseMixer, encoder: Encoder) -> None:
    inputs = tensors(arrays(encoder))
    with pytest.raises(ValueError, match="input_type_ids: missing"):
        module({"input_word_ids": inputs["input_word_ids"], "input_mask": inputs["input_mask"]})
    with pytest.raises(ValueError, match="expected one on the CPU"):
        module({**inputs, "input_mask": inputs["input_mask"].to("meta")})
    with pytest.raises(ValueError, match="is 'dense_inputs' meant"):
        module({**inputs, "dense_input": 1})
    with pytest.raises(ValueError, match="input_word_ids"):
        module({**inputs, "input_word_ids": inputs["input_word_ids"] + 50})
    with pytest.raises(ValueError, match="outputs: got 'logits'"):
        module(inputs, outputs=["logits"])
    with pytest.raises(NotImplementedError, match="only the whole module"):
        module.transformer.layer_0(inputs)
    with pytest.raises(TypeError, match="vocab_sise"):
        SparseMixer(50, vocab_sise=3)
    with pytest.raises(TypeError, match="expected no others"):
        SparseMixer(encoder, hidden_size=8)


def test_what_is_kept_is_released(encoder: Encoder, module: SparseMixer) -> None:
    loss = module(arrays(encoder), seed=1)["sequence_output"].sum()
    (record,) = module._engine._records.values()
    tape = weakref.ref(record)
    del record
    loss.backward(retain_graph=True)
    once = grads(module)
    loss.backward()
    for key, array in grads(module).items():
        np.testing.assert_allclose(array, 2 * once[key], rtol=1e-6)
    assert tape() is None
    assert not module._engine._records
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    # A call that is never differentiated.
    module(arrays(encoder))
    gc.collect()
    assert not module._engine._records


def test_checkpointing(encoder: Encoder, module: SparseMixer) -> None:
    inputs, grad = arrays(encoder), []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        module.zero_grad()
        words = torch.nn.functional.embedding(torch.from_numpy(inputs["input_word_ids"]), module.get_embedding_table())

        def run(words: Any) -> Any:
            given = {**inputs, "input_word_embeddings": words}
            del given["input_word_ids"]
            return module(given)["sequence_output"]

        output = torch.utils.checkpoint.checkpoint(run, words, use_reentrant=False) if checkpointed else run(words)
        assert bool(module._engine._records) != checkpointed
        output.square().sum().backward()
        grad.append(grads(module))
    for key, array in grad[0].items():
        np.testing.assert_array_equal(array, grad[1][key])


def test_functional_call_and_torch_func(encoder: Encoder, module: SparseMixer) -> None:
    inputs = tensors(arrays(encoder))
    module.eval()

    def loss(parameters: dict[str, Any]) -> Any:
        return torch.func.functional_call(module, parameters, (inputs,))["sequence_output"].square().sum()

    parameters = {name: p.detach() + 0.1 for name, p in module.named_parameters()}
    got = torch.func.grad(loss)(parameters)
    before = module(inputs)["sequence_output"].detach()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(parameters[name])
    assert not torch.equal(module(inputs)["sequence_output"], before)
    module(inputs)["sequence_output"].square().sum().backward()
    for key, array in grads(module).items():
        np.testing.assert_array_equal(got[key.replace("/", ".")], array)


def test_what_cannot_be(encoder: Encoder, module: SparseMixer) -> None:
    inputs = tensors(arrays(encoder))
    table = module.get_embedding_table()
    (first,) = torch.autograd.grad(module(inputs)["pooled_output"].sum(), table, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        (first.sum() + table.sum()).backward()
    with pytest.raises(NotImplementedError, match="all examples in one batch"):
        torch.vmap(lambda ids: module({**inputs, "input_word_ids": ids})["pooled_output"])(
            inputs["input_word_ids"].expand(2, 4, 6)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(
                lambda table: torch.func.functional_call(module, {"word_embeddings.embeddings": table}, (inputs,))[
                    "pooled_output"
                ],
                (table.detach(),),
                (torch.ones_like(table),),
            )


def test_threads_share_a_module(encoder: Encoder, module: SparseMixer) -> None:
    inputs = [tensors(arrays(encoder, seed=seed)) for seed in range(4)]
    parameters = [p for name, p in module.named_parameters() if not name.startswith("pooler")]

    def gradients(i: int) -> list[Any]:
        output = module(inputs[i], seed=i)["sequence_output"]
        return [output, *torch.autograd.grad(output.square().sum(), parameters)]

    expected = [gradients(i) for i in range(4)]
    wrong: list[Any] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not all(map(torch.equal, gradients(i), expected[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_inside_a_larger_model(encoder: Encoder) -> None:
    torch.manual_seed(0)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = SparseMixer(**SIZES)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, inputs: Any) -> Any:
            outputs = self.encoder(inputs, outputs=("pooled_output",))
            return self.head(outputs["pooled_output"]), outputs["aux_loss"]

    model = Classifier()
    inputs = tensors(arrays(encoder, 16))
    labels = (inputs["input_word_ids"][:, 0] > 25).long()
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        logits, aux = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        (loss + aux).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_example_of_the_docstring() -> None:
    assert doctest.testmod(importlib.import_module("sparse_mixer.torch.module")).failed == 0


# Compiled -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(module: SparseMixer) -> Any:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)


def test_compiled_modules(encoder: Encoder, module: SparseMixer, compiled: Any) -> None:
    for batch in (4, 5):
        inputs = tensors(arrays(encoder, batch))
        for training in (False, True):
            module.train(training)
            module.zero_grad()
            expected = module(inputs, seed=5)
            (expected["pooled_output"].sum() + 2 * expected["aux_loss"]).backward()
            gradients = grads(module)
            module.zero_grad()
            got = compiled(inputs, seed=5)
            (got["pooled_output"].sum() + 2 * got["aux_loss"]).backward()
            for name in ("sequence_output", "pooled_output", "aux_loss"):
                assert torch.equal(got[name], expected[name])
            assert got["router_metrics"].keys() == expected["router_metrics"].keys()
            for key, array in grads(module).items():
                np.testing.assert_array_equal(array, gradients[key], err_msg=key)
            assert not module._engine._records
    torch.optim.SGD(module.parameters(), 0.1).step()
    with torch.no_grad():
        assert torch.equal(compiled(inputs, seed=5)["pooled_output"], module(inputs, seed=5)["pooled_output"])


def test_compiled_modules_draw_anew(encoder: Encoder, module: SparseMixer, compiled: Any) -> None:
    inputs = tensors(arrays(encoder))
    torch.manual_seed(1)
    first, second = (compiled(inputs)["pooled_output"] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(compiled(inputs)["pooled_output"], first)
    assert not torch.equal(first, second)


def test_operators_are_as_pytorch_expects(encoder: Encoder, module: SparseMixer) -> None:
    given = [torch.from_numpy(arrays(encoder)[name]) for name in ("input_word_ids", "input_mask", "input_type_ids")]
    given[1] = given[1].float()
    parameters = [parameter.detach() for parameter in module._tensors()]
    names = "input_word_ids,input_mask,input_type_ids"
    arguments = (module._engine.name, names, [*given, *parameters], [], False, None, ",".join(OUTPUTS))
    torch.library.opcheck(
        torch.ops.sparse_mixer.encode.default, arguments, test_utils=("test_schema", "test_faketensor")
    )
