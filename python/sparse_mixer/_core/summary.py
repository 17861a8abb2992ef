"""Describing an encoder: its parts with their parameters, floating point operations and memory, as text and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from sparse_mixer._core.encoder import Encoder


class Row(NamedTuple):
    """One part of the encoder."""

    name: str
    kind: str
    parameters: int
    flops: int


def rows(encoder: Encoder) -> list[Row]:
    """Parameters of each part, and its floating point operations per sequence at inference.

    A multiplication and an addition count as two; only matrix products are counted, transforms at ``5 n log2 n``.
    Experts are counted as full; where tokens choose they may be less.
    """
    a = encoder.arguments
    sequence, hidden = a.max_sequence_length, a.hidden_size
    counted = []
    for layer in encoder.layers:
        kind, flops = "embedding", 0
        if layer.name == "embedding_projection":
            kind, flops = "dense", 2 * sequence * a.width() * hidden
        elif layer.name.endswith("layer_norm"):
            kind = "layer norm"
        elif layer.name == "pooler_transform":
            kind, flops = "dense, tanh", 2 * hidden * hidden
        counted.append(Row(layer.name, kind, layer.count_params(), flops))
    first = next(i for i, layer in enumerate(encoder.layers) if layer in encoder.transformer_layers)
    for offset, block in enumerate(encoder.transformer_layers):
        flops = _mixing_flops(encoder, block.mixing) + _feed_forward_flops(encoder, block.is_moe)
        row = counted[first + offset]
        counted[first + offset] = row._replace(kind=f"{block.mixing} + {block.feed_forward}", flops=flops)
    return counted


def text(encoder: Encoder) -> str:
    """The summary as lines of text."""
    parts = rows(encoder)
    cells = [("layer", "type", "parameters", "MFLOP / sequence")]
    cells += [(row.name, row.kind, f"{row.parameters:,}", f"{row.flops / 1e6:,.1f}") for row in parts]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [_line(cells[0], widths), "  ".join("-" * width for width in widths)]
    lines += [_line(line, widths) for line in cells[1:]]
    return "\n".join([f"SparseMixer {encoder.name!r} ({encoder.dtype})", *lines, *_totals(encoder, parts)])


def as_html(encoder: Encoder) -> str:
    """The summary as an HTML table, for notebooks."""
    parts = rows(encoder)
    body = "".join(
        f"<tr><td>{html.escape(row.name)}</td><td>{html.escape(row.kind)}</td>"
        f"<td style='text-align:right'>{row.parameters:,}</td>"
        f"<td style='text-align:right'>{row.flops / 1e6:,.1f}</td></tr>"
        for row in parts
    )
    totals = "".join(f"<div>{html.escape(line)}</div>" for line in _totals(encoder, parts))
    return (
        f"<details open><summary><b>SparseMixer</b> {html.escape(encoder.name)}</summary><table><thead><tr>"
        "<th>layer</th><th>type</th><th>parameters</th><th>MFLOP / sequence</th></tr></thead>"
        f"<tbody>{body}</tbody></table>{totals}</details>"
    )


def one_line(encoder: Encoder) -> str:
    """The text of ``repr(encoder)``."""
    a = encoder.arguments
    moe, attention = len(a.layers_within("moe_layers")), len(a.layers_within("attention_layers"))
    return (
        f"<SparseMixer {encoder.name!r}: vocab_size={a.vocab_size}, hidden_size={a.hidden_size}, "
        f"num_layers={a.num_layers} ({moe} MoE with {a.num_experts} experts, {attention} attention, "
        f"{a.mixing_mechanism.value} mixing), max_sequence_length={a.max_sequence_length}, "
        f"{encoder.count_params():,} parameters, {encoder.dtype}>"
    )


def _mixing_flops(encoder: Encoder, mixing: str) -> int:
    a = encoder.arguments
    sequence, hidden = int(a.max_sequence_length), int(a.hidden_size)
    if mixing == "attention":
        return 8 * sequence * hidden * hidden + 4 * sequence * sequence * hidden
    if mixing == "linear" or (mixing in ("circulant", "toeplitz") and not a.use_fft):
        return 2 * sequence * hidden * hidden + 2 * sequence * sequence * hidden
    if a.use_fft:
        # Convolutions go there and back; those of Toeplitz matrices over twice the lengths.
        points = sequence * hidden * {"circulant": 2, "toeplitz": 8}.get(mixing, 1)
        return int(5 * points * max(points.bit_length() - 1, 1))
    # Real input: the hidden transform gives a real and an imaginary part, both then go along the sequence.
    return 4 * sequence * hidden * hidden + 4 * sequence * sequence * hidden


def _feed_forward_flops(encoder: Encoder, is_moe: bool) -> int:
    a = encoder.arguments
    tokens = a.max_sequence_length
    if not is_moe:
        return int(4 * tokens * a.hidden_size * a.inner_dim)
    router = 2 * tokens * a.hidden_size * a.num_experts
    batch = _smallest_batch(encoder)
    groups, group_tokens, capacity = encoder.core.grouping(batch)
    rows = a.num_experts * capacity
    if a.router == "tokens_choose":
        # Slots that nobody asks for are not computed.
        rows = min(rows, a.num_selected_experts * group_tokens)
    return int(router + 4 * groups * rows / batch * a.hidden_size * a.expert_width())


def _totals(encoder: Encoder, parts: Sequence[Row]) -> list[str]:
    frozen = sum(variable.size for variable in encoder.non_trainable_weights)
    batch = _smallest_batch(encoder)
    return [
        f"Parameters: {sum(row.parameters for row in parts):,} ({frozen:,} frozen)",
        f"Inference: {sum(row.flops for row in parts) / 1e9:.2f} GFLOP per sequence",
        f"Memory: {encoder.weight_bytes / 2**20:.1f} MiB of weights, about "
        f"{encoder.memory_estimate(batch) / 2**20:.1f} MiB with a batch of {batch}",
        *([] if encoder.note is None else [encoder.note]),
    ]


def _smallest_batch(encoder: Encoder) -> int:
    # Routing groups may ask for more than one example.
    return max(1, math.ceil(encoder.arguments.group_examples()))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, kind, *numbers = cells
    left = [name.ljust(widths[0]), kind.ljust(widths[1])]
    right = [number.rjust(width) for number, width in zip(numbers, widths[2:], strict=True)]
    return "  ".join([*left, *right])
