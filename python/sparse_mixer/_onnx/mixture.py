"""The mixture of experts: routing by TopK, tokens gathered and scattered by index, so that experts stay sparse.

Equal probabilities go to the lower index in every runtime: the standard asks TopK for that, but not all obey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from sparse_mixer._core.arguments import Arguments
from sparse_mixer._onnx import activations
from sparse_mixer._onnx.graph import Graph


@dataclass(frozen=True)
class Grouping:
    """How tokens form groups, and how many an expert has room for in each; all int64 [1]."""

    tokens: str
    slots: str
    """Most tokens that an expert has of a group; at least 1, so that tensors are never empty."""
    capacity: str
    """The same without that minimum."""
    never: bool
    """Whether it is known that experts have no room at all."""


def capacity_of(arguments: Arguments, tokens: int) -> int:
    """Tokens that an expert takes of a group of `tokens`: doubles from left to right, halves to the even neighbour."""
    paper = arguments.semantics == "paper"
    least = arguments.min_expert_capacity
    least = (4 if paper else 0) if least is None else int(least)
    share = round(float(arguments.eval_capacity_factor) * tokens / int(arguments.num_experts))
    return max(share, least)


def make_grouping(graph: Graph, arguments: Arguments, seq: int | None, length: str, ids: str) -> Grouping:
    """The grouping of all mixtures.

    Args:
        graph: Where it is computed.
        arguments: The encoder's.
        seq: The length of sequences; None if it varies.
        length: The same as int64 [1].
        ids: A value whose first two axes are batch and length.

    Raises:
        ValueError: Experts would have to take more tokens than there are.
    """
    paper = arguments.semantics == "paper"
    size = arguments.max_group_size
    if size is None and paper and arguments.examples_per_group is None:
        size = 4096
    if size is not None:
        # The smallest number of equal groups that is at least all / size, rounded down; groups may be larger than size.
        all_tokens = graph.op("Mul", graph.dimension(ids, 0), length)
        one = graph.integers(1)
        least = graph.op("Max", graph.op("Div", all_tokens, graph.integers(size)), one)
        end = graph.op("Add", all_tokens, one)
        numbers = graph.op("Range", graph.scalar(least), graph.scalar(end), graph.constant(1, np.int64))
        divides = graph.op("Equal", graph.op("Mod", all_tokens, numbers), graph.integers(0))
        groups = graph.op("ReduceMin", graph.op("Where", divides, numbers, all_tokens), graph.integers(0), keepdims=1)
        return _grouping(graph, arguments, graph.op("Div", all_tokens, groups), range(2 * size + 1))
    examples = arguments.group_examples()
    if seq is None:
        tokens = [int(s * examples) for s in range(arguments.max_sequence_length + 1)]
        of_length = graph.op("Gather", graph.constant(tokens, np.int64), length, axis=0)
        return _grouping(graph, arguments, of_length, range(max(tokens) + 1))
    tokens_of_group = int(seq * examples)
    capacity = capacity_of(arguments, tokens_of_group)
    if arguments.router == "tokens_choose":
        capacity = min(capacity, tokens_of_group)
    elif capacity > tokens_of_group:
        raise ValueError(
            f"eval_capacity_factor: got {arguments.eval_capacity_factor}: an expert would take {capacity} of the "
            f"{tokens_of_group} tokens of a group"
        )
    numbers_of = (tokens_of_group, max(capacity, 1), capacity)
    tokens_name, slots, room = (graph.integers(number) for number in numbers_of)
    return Grouping(tokens_name, slots, room, never=capacity == 0)


def _grouping(graph: Graph, arguments: Arguments, tokens: str, sizes: range) -> Grouping:
    """The grouping into groups of `tokens`, which is one of `sizes`."""
    table = graph.constant([capacity_of(arguments, size) for size in sizes], np.int64)
    capacity = graph.op("Gather", table, tokens, axis=0)
    if arguments.router == "tokens_choose":
        capacity = graph.op("Min", capacity, tokens)
    return Grouping(tokens, graph.op("Max", capacity, graph.integers(1)), capacity, never=False)


class Routed(NamedTuple):
    """Which token goes to which expert; ``k`` slots."""

    probabilities: str
    """[G, T, E]"""
    tokens: str
    """Within the group, [G, E, k]; anything in empty slots."""
    filled: str
    """1 where a slot has a token, else 0: float32 [G, E, k]."""

    def indices(self, graph: Graph) -> str:
        """As the encoder's output ``"routing"`` has them: int32, -1 in empty slots."""
        empty = graph.op("Equal", self.filled, graph.constant(0.0))
        indices = graph.op("Where", empty, graph.integers(-1), self.tokens)
        return graph.op("Cast", indices, to=onnx.TensorProto.INT32)


def mix(graph: Graph, arguments: Arguments, key: str, grouping: Grouping, h: str) -> tuple[str, Routed | None]:
    """The mixture of experts ``[B, S, H]`` of `h`, and its routing."""
    hidden = arguments.hidden_size
    rows = graph.op("Reshape", h, graph.integers(-1, hidden))
    if grouping.never:
        return graph.op("ConstantOfShape", graph.op("Shape", h)), None
    # 1. the routing assignment
    groups_shape = graph.op(
        "Concat", graph.integers(-1), grouping.tokens, graph.integers(arguments.num_experts), axis=0
    )
    probabilities = graph.op("Reshape", _probabilities(graph, arguments, f"{key}/router", rows), groups_shape)
    choose = _tokens_choose if arguments.router == "tokens_choose" else _experts_choose
    routed = choose(graph, arguments, grouping, probabilities)
    # 2. tokens of all experts, [E, rows], numbered in the whole batch, and their weights
    by_expert = graph.op("Transpose", probabilities, perm=[0, 2, 1])
    weights = graph.op("Mul", graph.op("GatherElements", by_expert, routed.tokens, axis=2), routed.filled)
    first = graph.op("Mul", graph.arange(graph.dimension(probabilities, 0)), grouping.tokens)
    first = graph.op("Unsqueeze", first, graph.integers(1, 2))
    tokens = graph.op("Add", routed.tokens, first)
    weights = _of_experts(graph, arguments, weights)
    # 3. the experts on their tokens
    x = graph.op("Gather", rows, _of_experts(graph, arguments, tokens), axis=0)
    inner = _expert(graph, f"{key}/experts/intermediate", x)
    out = _expert(graph, f"{key}/experts/output", activations.apply(graph, arguments.inner_activation, inner))
    out = graph.op("Mul", out, graph.op("Unsqueeze", weights, graph.integers(2)))
    # 4. back to their places
    summed = _put_back(graph, arguments, rows, tokens, out)
    return graph.op("Reshape", summed, graph.op("Shape", h)), routed


def _put_back(graph: Graph, arguments: Arguments, rows: str, tokens: str, out: str) -> str:
    """The sum of the experts' rows `out` at `tokens` (``[G, E, k]``), of the shape of `rows`; expert after expert.

    Tokens may have several experts. To add at places that repeat is in the standard, but ONNX Runtime then loses
    summands when it has several threads (its issue 18048). Among an expert's own tokens none repeats.
    """
    experts = arguments.num_experts
    if arguments.group_mixup:
        # Of each row's own expert, not of the one that computed it.
        shape = graph.op("Concat", graph.op("Shape", tokens), graph.integers(arguments.hidden_size), axis=0)
        out = graph.op("Transpose", graph.op("Reshape", out, shape), perm=[1, 0, 2, 3])
        out = graph.op("Reshape", out, graph.integers(experts, -1, arguments.hidden_size))
    tokens = graph.op("Reshape", graph.op("Transpose", tokens, perm=[1, 0, 2]), graph.integers(experts, -1, 1))
    places, parts = (graph.ops("Split", [value], experts, axis=0, num_outputs=experts) for value in (tokens, out))
    summed = graph.op("ConstantOfShape", graph.op("Shape", rows))
    for place, part in zip(places, parts, strict=True):
        summed = graph.op("ScatterND", summed, place, part, reduction="add")
    return summed


def _expert(graph: Graph, key: str, x: str) -> str:
    product = graph.op("MatMul", x, graph.weight(f"{key}/kernel"))
    return graph.op("Add", product, graph.weight(f"{key}/bias"))


def _of_experts(graph: Graph, arguments: Arguments, slots: str) -> str:
    """``[G, E, k]`` as ``[E, G * k]``; with `group_mixup` the JAX code forgets to exchange the axes."""
    if not arguments.group_mixup:
        slots = graph.op("Transpose", slots, perm=[1, 0, 2])
    return graph.op("Reshape", slots, graph.integers(arguments.num_experts, -1))


def _probabilities(graph: Graph, arguments: Arguments, key: str, rows: str) -> str:
    """Of each token's experts, ``[B * S, E]``."""
    if arguments.router_dtype != "bfloat16":
        return graph.op("Softmax", graph.dense(f"{key}/router_weights", rows), axis=-1)
    kernel, bias = (graph.weight(f"{key}/router_weights/{name}") for name in ("kernel", "bias"))
    product = graph.op("MatMul", _rounded(graph, rows), _rounded(graph, kernel))
    logits = _rounded(graph, graph.op("Add", _rounded(graph, product), _rounded(graph, bias)))
    largest = graph.op("ReduceMax", logits, graph.integers(-1), keepdims=1)
    powers = _rounded(graph, graph.op("Exp", _rounded(graph, graph.op("Sub", logits, largest))))
    total = _rounded(graph, graph.op("ReduceSum", powers, graph.integers(-1), keepdims=1))
    return _rounded(graph, graph.op("Div", powers, total))


def _rounded(graph: Graph, x: str) -> str:
    """The nearest bfloat16 of float32, ties to even, by arithmetic: some runtimes drop casts there and back.

    Veltkamp's splitting: ``c - (c - x)`` with ``c = (2^16 + 1) x`` is `x` to 8 digits; of a tie it may be either side,
    and the even one has 7.
    """

    def split(value: str, bits: int) -> str:
        c = graph.op("Mul", value, graph.constant(2.0**bits + 1))
        return graph.op("Sub", c, graph.op("Sub", c, value))

    near = split(x, 16)
    rest = graph.op("Sub", x, near)
    other = graph.op("Add", near, graph.op("Add", rest, rest))
    return graph.op("Where", graph.op("Equal", split(other, 17), other), other, near)


def _experts_choose(graph: Graph, arguments: Arguments, grouping: Grouping, probabilities: str) -> Routed:
    """Every expert takes its most probable tokens, in the order of tokens."""
    by_expert = graph.op("Transpose", probabilities, perm=[0, 2, 1])
    best, _ = graph.ops("TopK", (by_expert, grouping.slots), 2, axis=-1)
    last = graph.op("ReduceMin", best, graph.integers(-1), keepdims=1)
    # Those above the last one that fits, and the first ones of those equal to it.
    above = graph.op("Greater", by_expert, last)
    equal = graph.op("Equal", by_expert, last)
    count = graph.op("ReduceSum", graph.to_float(above), graph.integers(-1), keepdims=1)
    room = graph.op("Sub", graph.to_float(grouping.slots), count)
    place = graph.op("CumSum", graph.to_float(equal), graph.constant(2, np.int64))
    fits = graph.op("And", equal, graph.op("LessOrEqual", place, room))
    tokens, filled = _slots(graph, graph.op("Or", above, fits), grouping)
    return Routed(probabilities, tokens, filled)


def _slots(graph: Graph, taken: str, grouping: Grouping) -> tuple[str, str]:
    """Where `taken` (``[G, E, X]``) is true, ascending, in slots ``[G, E, k]``; and which slots that fills."""
    count = graph.dimension(taken, 2)
    key = graph.to_float(graph.op("Sub", count, graph.arange(count)))
    largest, places = graph.ops("TopK", (graph.op("Mul", graph.to_float(taken), key), grouping.slots), 2, axis=-1)
    filled = graph.op("And", graph.op("Greater", largest, graph.constant(0.0)), _has_room(graph, grouping))
    return places, graph.to_float(filled)


def _has_room(graph: Graph, grouping: Grouping) -> str:
    return graph.op("Greater", grouping.capacity, graph.integers(0))


def _tokens_choose(graph: Graph, arguments: Arguments, grouping: Grouping, probabilities: str) -> Routed:
    """Every token asks for its most probable experts: first choices are served before second ones, and so on."""
    left, choices, first = probabilities, [], ""
    for _ in range(arguments.num_selected_experts):
        largest = graph.op("ReduceMax", left, graph.integers(-1), keepdims=1)
        equal = graph.op("Equal", left, largest)
        place = graph.op("CumSum", graph.to_float(equal), graph.constant(2, np.int64))
        chosen = graph.op("And", equal, graph.op("LessOrEqual", place, graph.constant(1.0)))
        left = graph.op("Where", chosen, graph.constant(-1.0), left)
        first = first or graph.op("Squeeze", largest, graph.integers(2))
        choices.append(graph.to_float(chosen))
    # [G, T]: who is served first, second, ...
    order = _descending(graph, first, grouping.tokens) if arguments.batch_prioritized_routing else ""
    if order:
        place = graph.op("Unsqueeze", order, graph.integers(2))
        choices = [graph.op("GatherND", choice, place, batch_dims=1) for choice in choices]
    requests = graph.op("Concat", *choices, axis=1)  # [G, K * T, E]
    before = graph.op("CumSum", requests, graph.constant(1, np.int64), exclusive=1)
    served = graph.op("Less", before, graph.to_float(grouping.capacity))
    served = graph.op("And", served, graph.op("Greater", requests, graph.constant(0.0)))
    places, filled = _slots(graph, graph.op("Transpose", served, perm=[0, 2, 1]), grouping)
    tokens = graph.op("Mod", places, grouping.tokens)
    if order:
        flat = graph.op("Reshape", tokens, graph.integers(0, -1))
        found = graph.op("GatherElements", order, flat, axis=1)
        tokens = graph.op("Reshape", found, graph.op("Shape", tokens))
    return Routed(probabilities, tokens, filled)


def _descending(graph: Graph, values: str, count: str) -> str:
    """Indices that sort ``[G, T]``, the lower index first among equals."""
    ordered, index = graph.ops("TopK", (values, count), 2, axis=-1)
    # Equal values become one run each, and runs are sorted by index.
    before = graph.op("Slice", ordered, graph.integers(0), graph.integers(-1), graph.integers(1))
    after = graph.op("Slice", ordered, graph.integers(1), graph.integers(np.iinfo(np.int64).max), graph.integers(1))
    starts = graph.to_float(graph.op("Less", after, before))
    starts = graph.op("Pad", starts, graph.integers(0, 1, 0, 0), graph.constant(0.0))
    run = graph.op("CumSum", starts, graph.constant(1, np.int64))
    run = graph.op("Cast", run, to=onnx.TensorProto.INT64)
    keys = graph.op("Add", graph.op("Mul", run, count), index)
    _, places = graph.ops("TopK", (keys, count), 2, axis=-1, largest=0)
    return graph.op("GatherElements", index, places, axis=1)
