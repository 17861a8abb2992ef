"""The constructor's arguments: declared once per language, and "not given" stays different from any value."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import SparseMixer, _native, initializers
from sparse_mixer._core.arguments import declared

CORE = {name: (kind, optional, limits, names) for name, kind, optional, _, limits, _, names in _native.arguments()}
PARAMETERS = inspect.signature(SparseMixer.__init__).parameters
# What concerns the object, and not what it computes; and another way to give the initialiser.
OF_THE_OBJECT = ["self", "name", "trainable", "num_threads", "isa", "initializer_range"]
TYPES = {
    "count": "int",
    "integer": "int",
    "seed": "int",
    "number": "float",
    "flag": "bool",
    "layers": "Sequence[int]",
    "dtype": "Any",
    "name": "str",
    "mixing": "MixingMechanism | str",
    "activation": "str | Mapping[str, Any] | Activation | Callable[..., Any] | None",
    "initializer": "str | Mapping[str, Any] | Initializer | Callable[..., Any]",
}
# Numbers outside of each range, by its words.
OUTSIDE = {
    "at least 1": [0],
    "a rate between 0 and 1": [-0.1, 1.1],
    "a finite number >= 0": [-0.001],
    "a finite number > 0": [0, -1],
    "a number above 0 and below 1": [0, 1],
}


def test_the_signature_is_the_cores_list() -> None:
    """Names, origin (TensorFlow's are positional), defaults and types."""
    assert set(PARAMETERS) == {*declared(), *OF_THE_OBJECT}
    for name, argument in declared().items():
        parameter = PARAMETERS[name]
        assert (parameter.kind is not parameter.KEYWORD_ONLY) == argument.is_keras, name
        assert (parameter.default is parameter.empty) == argument.is_required, name
        if not argument.is_required:
            assert argument.check(name, parameter.default) == argument.default, name
        if name in CORE:
            kind, optional, _, names = CORE[name]
            assert parameter.annotation == TYPES[kind] + (" | None" if optional else ""), name
            assert all(f'``"{choice}"``' in documented()[name] for choice in names), name


def documented() -> dict[str, str]:
    """What the constructor's documentation says of each argument."""
    documentation = inspect.getdoc(SparseMixer.__init__) or ""
    section = documentation.split("Args:\n")[1].split("\nRaises:")[0]
    return dict(re.findall(r"^    (\w+): (.*?)(?=\n    \w+: |\Z)", section.rstrip(), re.M | re.S))


def test_the_documentation_has_every_argument_and_no_other() -> None:
    assert set(documented()) == set(PARAMETERS) - {"self"}


@pytest.mark.parametrize(("name", "limits"), [(name, row[2]) for name, row in CORE.items() if row[2] in OUTSIDE])
def test_numbers_out_of_range_are_refused(name: str, limits: str) -> None:
    for number in OUTSIDE[limits]:
        with pytest.raises(ValueError, match=rf"^{name}: .*{number}"):
            small_encoder(**{name: number})


def groups(encoder: SparseMixer, batch: int = 4) -> int:
    """Number of routing groups of a batch."""
    routing = encoder(small_inputs(batch), outputs=("routing",))["routing"]
    return int(routing[0]["indices"].shape[0])


def projection(encoder: SparseMixer) -> np.ndarray[Any, Any]:
    (kernel,) = (weight.numpy() for weight in encoder.weights if weight.key == "embedding_projection/kernel")
    return kernel


def by_config(encoder: SparseMixer, _: Path) -> SparseMixer:
    return SparseMixer.from_config(json.loads(json.dumps(encoder.get_config())))


def by_file(encoder: SparseMixer, folder: Path) -> SparseMixer:
    encoder.save(folder / "encoder.safetensors")
    return SparseMixer.load(folder / "encoder.safetensors")


COPIES: list[Callable[[SparseMixer, Path], SparseMixer]] = [
    lambda encoder, _: encoder,
    by_config,
    by_file,
    lambda encoder, _: pickle.loads(pickle.dumps(encoder)),
    lambda encoder, _: copy.deepcopy(encoder),
]


@pytest.mark.parametrize("again", COPIES, ids=["itself", "config", "file", "pickle", "deepcopy"])
def test_one_example_per_group_is_not_the_same_as_none_given(
    again: Callable[[SparseMixer, Path], SparseMixer], tmp_path: Path
) -> None:
    """The paper's groups have up to 4096 tokens; an explicit 1.0 asks for one example each."""
    assert groups(again(small_encoder(semantics="paper"), tmp_path)) == 1
    assert groups(again(small_encoder(semantics="paper", examples_per_group=1.0), tmp_path)) == 4


@pytest.mark.parametrize("again", COPIES, ids=["itself", "config", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize(
    "given",
    ["normal", initializers.DEFAULT, initializers.RandomNormal(stddev=0.02)],
    ids=["name", "default", "paper's"],
)
def test_a_given_initialiser_draws_all_kernels(
    given: Any, again: Callable[[SparseMixer, Path], SparseMixer], tmp_path: Path
) -> None:
    """The paper draws the projection wider than other kernels, unless an initialiser is given."""
    arguments = {"semantics": "paper", "hidden_size": 64, "seed": 1}
    wanted = again(small_encoder(**arguments, initializer=given), tmp_path)
    spread = 0.05 if given == "normal" else 0.02 * (0.88 if given is initializers.DEFAULT else 1.0)
    assert projection(wanted).std() == pytest.approx(spread, rel=0.03)
    assert projection(again(small_encoder(**arguments), tmp_path)).std() == pytest.approx(64**-0.5, rel=0.03)


def test_what_is_not_given_follows_other_semantics(tmp_path: Path) -> None:
    """Also where a file is loaded with other semantics than it was saved with."""
    for changes, expected in ({}, 1), ({"examples_per_group": 1.0}, 4):
        encoder = small_encoder(moe_residual=True, project_embeddings=False, **changes)
        assert groups(encoder) == 4
        encoder.save(tmp_path / "encoder.safetensors")
        assert groups(SparseMixer.load(tmp_path / "encoder.safetensors", semantics="paper")) == expected


def test_two_sizes_of_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_group_size: got 8 together with examples_per_group=1; give only one"):
        small_encoder(max_group_size=8, examples_per_group=1.0)
    with_size = small_encoder(max_group_size=8)
    assert SparseMixer.from_config(with_size.get_config()).get_config() == with_size.get_config()
