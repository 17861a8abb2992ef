"""Public names change on purpose only."""

from __future__ import annotations

import difflib

import public_names
import pytest

pytestmark = pytest.mark.skipif(not public_names.PACKAGE.is_dir(), reason="needs the sources")


def test_public_names_are_those_stored() -> None:
    stored, now = public_names.STORED.read_text().splitlines(), list(public_names.names())
    difference = "\n".join(difflib.unified_diff(stored, now, "stored", "now", lineterm="", n=0))
    assert not difference, f"if this is meant, run python tests/public_names.py --write\n{difference}"


def test_names_are_found() -> None:
    now = set(public_names.names())
    for name in (
        "sparse_mixer.networks.SparseMixer",
        "sparse_mixer.networks.SparseMixer.count_params(self)",
        "sparse_mixer.networks.SparseMixer.losses",
        "sparse_mixer.checkpoints.CheckpointError",
        "sparse_mixer.SparseMixer.count_params(self)",
        "sparse_mixer.plots",
    ):
        assert name in now, name
    assert "sparse_mixer.networks.SparseMixer._assemble" not in "\n".join(now)
