"""What notebooks do with TensorFlow's class does the same with our layer, with nothing else changed."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from sparse_mixer.keras import layer_class

from tests.usage_patterns import calls, models, notebooks

tf = reference.tf

# Functions that the patterns are made of.
HELPERS = {"batch", "classifier", "compiled", "fill", "labels", "made", "tensors"}

Pattern = Callable[..., Any]


def patterns() -> dict[str, Pattern]:
    found: dict[str, Pattern] = {}
    for module in (calls, models, notebooks):
        functions = inspect.getmembers(module, inspect.isfunction)
        found |= {name: f for name, f in functions if name not in HELPERS and not name.startswith("_")}
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """TensorFlow warns about its own affairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(pattern: Pattern, make: Any, folder: Path) -> list[Any]:
    reference.tf_keras.backend.clear_session()
    folder.mkdir()
    result = pattern(make, folder) if "folder" in inspect.signature(pattern).parameters else pattern(make)
    return tf.nest.flatten(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(patterns()))
def test_pattern_runs_unchanged(name: str, tmp_path: Path) -> None:
    pattern = patterns()[name]
    expected = run(pattern, reference.official_sparse_mixer.SparseMixer, tmp_path / "theirs")
    got = run(pattern, layer_class("tf_keras"), tmp_path / "ours")
    assert len(got) == len(expected)
    for a, b in zip(expected, got, strict=True):
        if isinstance(a, str | bool):
            assert b == a
        else:
            np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-4, atol=2e-5)


def test_documentation_lists_all_patterns() -> None:
    table = (Path(__file__).parents[1] / "docs" / "drop-in.md").read_text()
    listed = re.findall(r"^\| `(\w+)` +\| unchanged +\|", table, re.MULTILINE)
    assert sorted(listed) == sorted(patterns())
    assert f"{len(listed)} unchanged" in table
    assert len(listed) >= 45
