"""A call of an encoder as one differentiable operation: an autograd function, and operators for compiled graphs.

Both give the same numbers. Operators of `torch.library` cost more per call, so that eager calls do without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sparse_mixer.torch._engine import AUX_METRICS, Engine, engines, output_places

_SEEDS = 2**63 - 1


class Call(NamedTuple):
    """What a call consists of beside tensors.

    Attributes:
        engine: The encoder.
        names: Names of the inputs, which come first among the tensors; parameters follow.
        others: Keys of the caller's dict that name no input.
        wanted: Names of inputs and keys of parameters that get gradients; none if the call is not to be recorded.
        training: As in a call of `sparse_mixer.SparseMixer`.
        seed: As there; None to take one from PyTorch's generator if `draws`.
        draws: Whether the call uses random numbers.
        outputs: As there.
    """

    engine: Engine
    names: tuple[str, ...]
    others: tuple[Any, ...]
    wanted: tuple[str, ...]
    training: bool
    seed: int | None
    draws: bool
    outputs: tuple[str, ...]

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """Tensors: handle of the record, total of the auxiliary losses, metrics, expert load, outputs."""
        split = len(self.names)
        inputs = {
            name: tensor.detach().numpy() for name, tensor in zip(self.names, tensors[:split], strict=True)
        } | dict.fromkeys(self.others)
        seed = self.seed
        if seed is None:
            seed = int(draw_seed()) if self.draws else 0
        results = self.engine.run(
            inputs, tensors[split:], training=self.training, seed=seed, wanted=self.wanted, outputs=self.outputs
        )
        arrays = (results.total, results.metrics, results.expert_load, *results.outputs)
        return [self.engine.keep(results.vjp), *map(torch.from_numpy, arrays)]


def draw_seed() -> Any:
    """A seed from PyTorch's generator, int64 scalar."""
    return torch.randint(_SEEDS, (), dtype=torch.int64)


def encode(call: Call, tensors: Sequence[Any]) -> tuple[list[Any], Any, dict[str, Any]]:
    """Outputs of a call, total of its auxiliary losses, and values without a gradient by the names of `AUX_METRICS`."""
    if torch.compiler.is_compiling():
        seed = None
        if call.seed is not None:
            seed = torch.tensor(call.seed - 2**64 if call.seed >= 2**63 else call.seed)
        elif call.draws:
            seed = draw_seed()
        all_names = [*call.names, *call.engine.keys]
        wanted = [all_names.index(name) for name in call.wanted]
        names, outputs = ",".join(call.names), ",".join(call.outputs)
        _, total, metrics, load, *found = torch.ops.sparse_mixer.encode(
            call.engine.name, names, list(tensors), wanted, call.training, seed, outputs
        )
        metrics, load = metrics.detach(), load.detach()
    else:
        _, total, metrics, load, *found = _Encode.apply(call, *tensors)
    return found, total, dict(zip(AUX_METRICS, [*metrics.unbind(0), load], strict=True))


# Eager calls ------------------------------------------------------------------------------------------------------


class _Encode(torch.autograd.Function):
    """A call."""

    @staticmethod
    def forward(call: Call, *tensors: Any) -> tuple[Any, ...]:
        return tuple(call.run(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.call = inputs[0]
        handle, _, metrics, load, *_ = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(handle, metrics, load)
        # What is kept lives as long as PyTorch keeps this.
        ctx.save_for_backward(handle)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        call, (handle,) = ctx.call, ctx.saved_tensors
        names = [*call.names, *call.engine.keys]
        wanted = set(call.wanted).intersection(
            name for name, needed in zip(names, ctx.needs_input_grad[1:], strict=True) if needed
        )
        _, d_total, _, _, *d_outputs = gradients
        given = [d is not None for d in d_outputs]
        reached = call.engine.reached([n for n in names if n in wanted], given, d_total is not None, call.outputs)
        if not reached:
            return (None,) * (1 + len(names))
        # Where a graph of gradients is made, they must be seen to depend on something, or its gradient would lack them.
        link = torch.zeros((), requires_grad=True) if torch.is_grad_enabled() else None
        found = _Differentiate.apply(call, reached, _keeps_graph(), link, handle, d_total, *d_outputs)
        by_name = dict(zip(reached, found, strict=True))
        # Nothing here may hold on to the gradients: PyTorch takes them over where it is their only owner.
        del found
        return (None, *(by_name.pop(name, None) for name in names))

    @staticmethod
    def vmap(*_args: Any) -> Any:
        raise NotImplementedError(
            "SparseMixer: torch.vmap is not possible; call the module with all examples in one batch"
        )

    @staticmethod
    def jvp(*_args: Any) -> Any:
        raise NotImplementedError("SparseMixer: forward-mode derivatives (jvp) are not possible; use backward")


class _Differentiate(torch.autograd.Function):
    """The gradients of a call."""

    @staticmethod
    def forward(
        call: Call, names: Sequence[str], keep: bool, _link: Any, handle: Any, d_total: Any, *d_outputs: Any
    ) -> Any:
        arrays = [None if d is None else d.detach().numpy() for d in d_outputs]
        weight = 0.0 if d_total is None else float(d_total)
        record = call.engine.take(handle)
        return tuple(call.engine.differentiate(record, arrays, weight, names, call.outputs, last=not keep))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(_ctx: Any, *_gradients: Any) -> Any:
        raise NotImplementedError("SparseMixer: gradients of gradients are not possible")

    vmap = _Encode.vmap
    jvp = _Encode.jvp


def _keeps_graph() -> bool:
    """Whether another backward pass may follow, as with ``retain_graph=True``."""
    asked: Any = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())


# Operators for compiled graphs ------------------------------------------------------------------------------------


@torch.library.custom_op(
    "sparse_mixer::encode",
    mutates_args=(),
    device_types="cpu",
    schema="(str engine, str names, Tensor[] tensors, int[] wanted, bool training, Tensor? seed, str outputs)"
    " -> Tensor[]",
)
def _encode(
    engine: str, names: str, tensors: list[Any], wanted: list[int], training: bool, seed: Any, outputs: str
) -> list[Any]:
    call = _call(engine, names, wanted, training, outputs)
    return call._replace(seed=0 if seed is None else int(seed) % 2**64).run(tensors)


@_encode.register_fake
def _(
    engine: str, names: str, tensors: list[Any], wanted: list[int], training: bool, seed: Any, outputs: str
) -> list[Any]:
    call = _call(engine, names, wanted, training, outputs)
    arguments = call.engine.arguments
    inputs = dict(zip(call.names, tensors, strict=False))
    batch, length = inputs["input_type_ids"].shape
    if "dense_type_ids" in inputs:
        length = length + inputs["dense_type_ids"].shape[1]
    width, last = arguments.hidden_size, length
    if arguments.output_range is not None and arguments.semantics != "keras_strict":
        last = torch.sym_min(length, arguments.output_range)
    new = tensors[-1].new_empty
    outs = []
    for name, block in output_places(arguments.num_layers, call.outputs):
        rows = last if block == arguments.num_layers - 1 else length
        outs.append(new((batch, width) if name == "pooled_output" else (batch, rows, width)))
    moe = call.engine.num_moe_layers
    return [
        new((1,), dtype=torch.int64),
        new(()),
        new((len(AUX_METRICS) - 1, moe)),
        new((moe, arguments.num_experts)),
        *outs,
    ]


@torch.library.custom_op(
    "sparse_mixer::differentiate",
    mutates_args=(),
    device_types="cpu",
    schema="(str engine, Tensor handle, Tensor? d_total, Tensor[] d_outputs, int[] places, str names, str outputs,"
    " Tensor[] rows) -> Tensor[]",
)
def _differentiate(
    engine: str,
    handle: Any,
    d_total: Any,
    d_outputs: list[Any],
    places: list[int],
    names: str,
    outputs: str,
    rows: list[Any],
) -> list[Any]:
    owner, wanted_outputs = engines[engine], outputs.split(",")
    arrays: list[Any] = [None] * len(output_places(owner.num_blocks, wanted_outputs))
    for place, d_output in zip(places, d_outputs, strict=True):
        arrays[place] = d_output.detach().numpy()
    weight = 0.0 if d_total is None else float(d_total)
    record = owner.take(handle)
    return owner.differentiate(record, arrays, weight, names.split(","), wanted_outputs, last=not _keeps_graph())


@_differentiate.register_fake
def _(
    engine: str,
    handle: Any,
    d_total: Any,
    d_outputs: list[Any],
    places: list[int],
    names: str,
    outputs: str,
    rows: list[Any],
) -> list[Any]:
    shapes, of_rows = engines[engine].shapes, iter(rows)
    return [
        handle.new_empty(shapes[name] if name in shapes else next(of_rows).shape, dtype=torch.float32)
        for name in names.split(",")
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Any]) -> None:
    engine, names, tensors, wanted, _, _, outputs = inputs
    ctx.set_materialize_grads(False)
    ctx.call = _call(engine, names, wanted, True, outputs)
    ctx.count = len(tensors)
    # Inputs with a gradient, for their shapes.
    rows = {name: tensor for name, tensor in zip(ctx.call.names, tensors, strict=False) if name in ctx.call.wanted}
    ctx.rows = list(rows)
    ctx.save_for_backward(output[0], *rows.values())


def _backward(ctx: Any, gradients: list[Any]) -> tuple[Any, ...]:
    call = ctx.call
    handle, *saved = ctx.saved_tensors
    _, d_total, _, _, *d_outputs = gradients
    given = [d is not None for d in d_outputs]
    names = call.engine.reached(call.wanted, given, d_total is not None, call.outputs)
    found: list[Any] = []
    if names:
        rows = [tensor for name, tensor in zip(ctx.rows, saved, strict=True) if name in names]
        places = [place for place, flag in enumerate(given) if flag]
        found = torch.ops.sparse_mixer.differentiate(
            call.engine.name,
            handle,
            d_total,
            [d for d in d_outputs if d is not None],
            places,
            ",".join(names),
            ",".join(call.outputs),
            rows,
        )
    by_name = dict(zip(names, found, strict=True))
    all_names = [*call.names, *call.engine.keys]
    return None, None, [by_name.get(name) for name in all_names], None, None, None, None


def _refuse_second_order(*_args: Any) -> Any:
    raise NotImplementedError("SparseMixer: gradients of gradients are not possible")


_encode.register_autograd(_backward, setup_context=_setup_context)
_differentiate.register_autograd(_refuse_second_order)


def _call(engine: str, names: str, wanted: Sequence[int], training: bool, outputs: str) -> Call:
    owner, input_names = engines[engine], tuple(names.split(","))
    all_names = [*input_names, *owner.keys]
    return Call(
        engine=owner,
        names=input_names,
        others=(),
        wanted=tuple(all_names[place] for place in wanted),
        training=training,
        seed=None,
        draws=False,
        outputs=tuple(outputs.split(",")),
    )
