"""What makes a run, in a form that a file can hold: a resumption must have the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mixer._core.checks import short
from sparse_mixer.optimizers import Optimizer

# Elements that are converted at once.
_PIECE = 1 << 20
# Differences that a message has room for.
_MOST = 4
# What is compared by digests, which tell nobody anything.
_DIGESTS = frozenset({"inputs", "labels", "sample_weight", "batches"})


def of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Name and settings of an optimiser, those of its schedule among them."""
    config = optimizer.get_config()
    own = {f"optimizer {name}": value for name, value in config.items() if name != "name"}
    return _plain({"optimizer": optimizer.name, **own})


def of_model(model: Any) -> dict[str, Any]:
    """Class and configuration of a model and of its encoder, and which weights are frozen."""
    described: dict[str, Any] = {"model": type(model).__name__}
    config: Mapping[str, Any] = getattr(model, "get_config", dict)()
    described |= {f"model {name}": value for name, value in config.items()}
    encoder = getattr(model, "encoder", None)
    # The seed says where initial weights came from, which the state replaces.
    config = getattr(encoder, "get_config", dict)()
    described |= {f"encoder {name}": value for name, value in config.items() if name != "seed"}
    described["frozen weights"] = [variable.name for variable in model.non_trainable_weights]
    if encoder is not None:
        start = f"{encoder.name}/"
        described["frozen weights"] = [name.removeprefix(start) for name in described["frozen weights"]]
    return _plain(described)


def of_arrays(data: Any) -> dict[str, Any]:
    """Digests of inputs, labels and sample weights, of batches in a list, or of nothing where only a call can tell."""
    if isinstance(data, Mapping):
        return {"inputs": digest(data)}
    if isinstance(data, tuple) and data and isinstance(data[0], Mapping):
        names = ("inputs", "labels", "sample_weight")
        return {name: digest(part) for name, part in zip(names, data, strict=False)}
    if isinstance(data, list):
        return {"batches": digest(data)}
    return {}


def digest(value: Any) -> str:
    """A digest of arrays by their values, whatever type they are stored in; also of mappings and sequences of such."""
    state = hashlib.blake2b(digest_size=12)
    _feed(state, value)
    return state.hexdigest()


def of_function(function: Any) -> str | None:
    """The name of a function of the user's."""
    return None if function is None else _named(function)


def differences(theirs: dict[str, Any], mine: dict[str, Any], passed_over: Sequence[str]) -> str:
    """What two runs differ in, as the end of a sentence; empty if in nothing."""
    names = [name for name in theirs | mine if theirs.get(name) != mine.get(name) and name not in passed_over]
    told = []
    for name in names:
        values = f" {short(theirs.get(name))}, this one has {short(mine.get(name))}"
        told.append(f"other {name}" if name in _DIGESTS else f"{name}{values}")
    more = f"; and {len(told) - _MOST} more differences" if len(told) > _MOST else ""
    return "; ".join(told[:_MOST]) + more


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            state.update(f"key {name};".encode())
            _feed(state, value[name])
    elif isinstance(value, tuple) or (isinstance(value, list) and any(isinstance(x, Mapping | tuple) for x in value)):
        state.update(f"sequence {len(value)};".encode())
        for entry in value:
            _feed(state, entry)
    elif value is None:
        state.update(b"none;")
    else:
        array = np.asarray(value)
        state.update(f"array {array.dtype.kind in 'iub'} {array.shape};".encode())
        common = "<i8" if array.dtype.kind in "iub" else "<f8"
        flat = array.ravel()
        for start in range(0, flat.size, _PIECE):
            state.update(np.ascontiguousarray(flat[start : start + _PIECE].astype(common)).data)


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: JSON, with names in the place of callables."""
    plain: dict[str, Any] = json.loads(json.dumps(described, default=_named))
    return plain


def _named(value: Any) -> str:
    """A name that is the same in every process."""
    if isinstance(value, np.generic):
        return repr(value.item())
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    if hasattr(value, "get_config"):
        return f"{name}({json.dumps(value.get_config(), default=_named, sort_keys=True)})"
    return str(name)
