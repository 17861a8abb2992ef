"""Files damaged at random: a clear error, never a crash, a hang or much memory. `damaged_files` makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from damaged_files import FORMATS

# `make crash` has 500.
COUNT = int(os.environ.get("SPARSE_MIXER_TEST_DAMAGED", "40"))


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_clear_errors(name: str) -> None:
    """In a process of its own: what crashes it shall not end the tests, and its memory is measured."""
    script = Path(__file__).with_name("damaged_files.py")
    command = [sys.executable, str(script), "--count", str(COUNT), "--format", name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30 + COUNT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
