"""Unsafe code: only in the kernels and the system layer, every block with its reason, and no new one unnoticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNSAFE = re.compile(r"\bunsafe\s*(\{|impl\b|fn\b|extern\b)")
# A block more or less is a change to look at, together with this table.
COUNTS: dict[str, int] = {
    "src/kernels/isa/avx2.rs": 3,
    "src/kernels/isa/avx512.rs": 4,
    "src/kernels/isa/level.rs": 1,
    "src/kernels/isa/neon.rs": 6,
    "src/kernels/isa/portable.rs": 4,
    "src/kernels/isa/simd.rs": 2,
    "src/kernels/isa/x86_64.rs": 2,
    "src/kernels/matmul/amx.rs": 10,
    "src/kernels/matmul/bfloat16.rs": 2,
    "src/kernels/matmul/dot_tile.rs": 9,
    "src/kernels/matmul/dot_x86_64.rs": 26,
    "src/kernels/matmul/full_precision.rs": 2,
    "src/kernels/matmul/int8.rs": 2,
    "src/kernels/matmul/packed.rs": 1,
    "src/kernels/matmul/panel_product.rs": 2,
    "src/kernels/matmul/register_tile.rs": 6,
    "src/kernels/matmul/widened.rs": 5,
    "src/sys/aligned.rs": 15,
    "src/sys/at_fork.rs": 1,
    "src/sys/huge_pages.rs": 3,
    "src/sys/lease.rs": 7,
    "src/sys/lend.rs": 1,
    "src/sys/map_file.rs": 2,
}


def code(path: Path) -> list[str]:
    """The lines without comments and texts."""
    return [re.sub(r'"(\\.|[^"\\])*"', '""', line).split("//")[0] for line in path.read_text().splitlines()]


def count(path: Path) -> int:
    return sum(len(UNSAFE.findall(line)) for line in code(path))


@pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="needs the sources")
def test_where_and_how_much() -> None:
    counts = {str(path.relative_to(ROOT)): count(path) for path in sorted((ROOT / "src").rglob("*.rs"))}
    assert {name: number for name, number in counts.items() if number} == COUNTS
    assert all(name.startswith(("src/kernels/", "src/sys/")) for name in COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_reasons(name: str) -> None:
    """Clippy asks for a reason at every block; here, too, so that nobody allows the lint away in a file."""
    text = (ROOT / name).read_text()
    assert "undocumented_unsafe_blocks" not in text
    assert text.count("SAFETY:") + text.count("# Safety") > 0
