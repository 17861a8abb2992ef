"""The tensors of a file as a tree of their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Deeper names than any model has stay in one piece.
_MOST_PARTS = 64


@dataclass
class _Node:
    """A part of a name: a tensor, or what other names begin with. A file may have both under one name."""

    children: dict[str, _Node] = field(default_factory=dict)
    cells: tuple[str, ...] | None = None
    tensors: int = 0
    size: int = 0


def tree(entries: Sequence[tuple[str, tuple[str, ...], int]]) -> list[tuple[str, tuple[str, ...] | None, int, int]]:
    """The lines of a tree.

    Args:
        entries: Name, further columns and bytes of each tensor. Names are taken apart at ``/``, or if none has one, at
            ``.``.

    Returns:
        For each line the indented part of the name, the columns of a tensor (None for a folder), and number and bytes
        of the tensors at or below it. Folders come in the order of their first tensor; one with a single entry stands
        on the line of that.
    """
    separator = "/" if any("/" in name for name, _, _ in entries) else "."
    root = _Node()
    for name, cells, size in entries:
        node = root
        for part in name.split(separator, _MOST_PARTS):
            node.tensors += 1
            node.size += size
            node = node.children.setdefault(part, _Node())
        node.tensors += 1
        node.size += size
        node.cells = cells
    lines: list[tuple[str, tuple[str, ...] | None, int, int]] = []

    def walk(node: _Node, label: str, depth: int) -> None:
        while node.cells is None and len(node.children) == 1:
            part, node = next(iter(node.children.items()))
            label = f"{label}{separator}{part}"
        folder = separator if node.children and node.cells is None else ""
        lines.append((f"{'  ' * depth}{label}{folder}", node.cells, node.tensors, node.size))
        for part, child in node.children.items():
            walk(child, part, depth + 1)

    for part, child in root.children.items():
        walk(child, part, 0)
    return lines
