"""Whether the built site has every public name: compares its inventory with the sources. Used by `make docs-site`."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import public_names  # noqa: E402


def described(inventory: bytes) -> set[str]:
    """Names in a Sphinx inventory, which mkdocstrings writes."""
    _, _, rest = inventory.partition(b"zlib.\n")
    return {line.split(" ")[0] for line in zlib.decompress(rest).decode().splitlines()}


def missing(inventory: bytes) -> list[str]:
    """Public names that the site does not describe."""
    have = described(inventory)
    for full, file in public_names.ON_DEMAND.items():
        start = f"{file}.{full.rpartition('.')[2]}"
        have |= {full + name.removeprefix(start) for name in have if name.startswith(start)}
    names = {name.partition("(")[0] for name in public_names.names()}
    # Constructors are described with their classes.
    return sorted(name for name in names - have if not name.endswith((".__init__", ".__version__")))


if __name__ == "__main__":
    absent = missing((ROOT / "site/objects.inv").read_bytes())
    print("\n".join(f"not in the reference: {name}" for name in absent) or "every public name is in the reference")
    sys.exit(bool(absent))
