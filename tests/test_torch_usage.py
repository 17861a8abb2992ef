"""PyTorch's own ways of using modules, with the module of an encoder: seeds, copies, threads, compilation."""

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
from torch_cases import OUTPUTS, SIZES, arrays, grads, tensors
from torch_reference import torch

from sparse_mixer.torch import SparseMixer  # isort: skip


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(**SIZES, seed=3)


@pytest.fixture
def module(encoder: Encoder) -> SparseMixer:
    return encoder.as_torch_module()


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
