"""Checks built wheels: platform tag (auditwheel), stable ABI (abi3audit), size. Used by `make wheels`."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

LARGEST = 8_000_000
TOOLS = Path(sys.executable).parent


def problems(wheel: Path) -> list[str]:
    """What is wrong with `wheel`."""
    found = []
    size = wheel.stat().st_size
    if size > LARGEST:
        found.append(f"{size:,} bytes, expected at most {LARGEST:,}")
    if "-abi3-" not in wheel.name:
        found.append("not of the stable ABI by its name")
    names = zipfile.ZipFile(wheel).namelist()
    found += [f"lacks {name}" for name in ("sparse_mixer/py.typed", "sparse_mixer/_native.pyi") if name not in names]
    found += _of_musl(wheel) if "-musllinux_" in wheel.name else _of_glibc(wheel)
    audit = subprocess.run([TOOLS / "abi3audit", "--strict", wheel], capture_output=True, text=True, check=False)
    if audit.returncode:
        found.append(f"abi3audit: {audit.stdout}{audit.stderr}")
    return found


def _of_glibc(wheel: Path) -> list[str]:
    """Whether auditwheel finds the platform that the name says."""
    shown = subprocess.run([TOOLS / "auditwheel", "show", wheel], capture_output=True, text=True, check=False)
    text = " ".join(shown.stdout.split())
    consistent = re.search(r'following platform tag: "(\w+)"', text)
    tags = wheel.stem.split("-")[-1].split(".")
    if consistent is None or consistent[1] not in tags:
        return [f"auditwheel: {text or shown.stderr}"]
    return []


def _of_musl(wheel: Path) -> list[str]:
    """Whether the library needs musl and nothing else; auditwheel reads the system's libc, which is another."""
    from elftools.elf.elffile import ELFFile

    library = io.BytesIO(zipfile.ZipFile(wheel).read("sparse_mixer/_native.abi3.so"))
    dynamic = ELFFile(library).get_section_by_name(".dynamic")
    needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    return [] if needed <= {"libc.so"} else [f"needs {', '.join(sorted(needed))}"]


def main(wheels: list[str]) -> int:
    """Print what is wrong; 1 if anything is."""
    bad = 0
    for wheel in map(Path, wheels):
        found = problems(wheel)
        bad += bool(found)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {'; '.join(found) or 'good'}")
    return 1 if bad or not wheels else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
