"""Describing a model: its parts with their parameters, as text and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


def rows(model: Any) -> list[tuple[str, str, str]]:
    """Name, class and number of parameters of each part."""
    return [(part.name, type(part).__name__, f"{part.count_params():,}") for part in model.parts]


def text(model: Any) -> str:
    """The summary as lines of text: encoder and heads, then the layers of the encoder."""
    cells = [("part", "type", "parameters"), *rows(model)]
    cells += [(f"  {layer.name}", type(layer).__name__, f"{layer.count_params():,}") for layer in model.encoder.layers]
    head, *body = [_line(line, [max(map(len, column)) for column in zip(*cells, strict=True)]) for line in cells]
    title = f"{type(model).__name__} {model.name!r}"
    return "\n".join([title, head, "-" * len(head), *body, _total(model)])


def as_html(model: Any) -> str:
    """The parts as an HTML table, with the encoder's own below, for notebooks."""
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(kind)}</td><td style='text-align:right'>{count}</td></tr>"
        for name, kind, count in rows(model)
    )
    return (
        f"<details open><summary><b>{type(model).__name__}</b> {html.escape(model.name)}</summary><table><thead><tr>"
        f"<th>part</th><th>type</th><th>parameters</th></tr></thead><tbody>{body}</tbody></table>"
        f"<div>{html.escape(_total(model))}</div>{model.encoder._repr_html_()}</details>"
    )


def _total(model: Any) -> str:
    frozen = sum(variable.size for variable in model.non_trainable_weights if hasattr(variable, "size"))
    return f"Parameters: {model.count_params():,} ({frozen:,} frozen)"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, kind, count = cells
    return f"{name.ljust(widths[0])}  {kind.ljust(widths[1])}  {count.rjust(widths[2])}"
