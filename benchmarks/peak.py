"""The processor's measured multiply-add rate, by compiling and running `peak.c`."""

from __future__ import annotations

import json
import pathlib
import platform
import subprocess
import tempfile

INSTRUCTIONS = {
    "float32": ("float32_avx2", "float32_avx512"),
    "bfloat16": ("bfloat16_avx512", "bfloat16_amx"),
    "int8": ("int8_avx512_vnni", "int8_amx"),
}
"""Rates of `peak.c` that a storage type can reach; the best one is its peak."""


def measure(threads: int, seconds: float = 0.3) -> dict[str, float]:
    """Return operations per second of all threads together for each instruction, a multiply-add counted as two.

    Args:
        threads: threads that run the loop at once.
        seconds: time given to each instruction.

    Returns:
        Rates by name as in `peak.c`; 0 where the processor lacks the instruction, empty off x86-64.
    """
    if platform.machine() != "x86_64":
        return {}
    source = pathlib.Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "peak"
        subprocess.run(["cc", "-O2", "-pthread", str(source), "-o", str(program)], check=True)
        answer = subprocess.run([program, str(threads), str(seconds)], check=True, capture_output=True, text=True)
    rates: dict[str, float] = json.loads(answer.stdout)
    return rates


def of_storage_type(rates: dict[str, float], compute: str) -> float:
    """Return the best rate for "float32", "bfloat16" or "int8", or 0 if none was measured."""
    return max((rates.get(name, 0.0) for name in INSTRUCTIONS[compute]), default=0.0)
