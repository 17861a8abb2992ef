"""Training state in a file: weights, moments, counters; replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.arrays import as_float32
from sparse_mixer._core.checks import as_float, as_step
from sparse_mixer.training.history import History
from sparse_mixer.training.metrics import Metrics

REMEDY = "pass resume=False to start over, or another state_path"
_FORMAT = "sparse_mixer training state, version 3"
_META = "meta.json"


def save(
    path: Path,
    meta: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    snapshot: _native.TrainingSnapshot | None = None,
) -> None:
    """Write `meta` (JSON-able), `arrays` and the weights and moments of `snapshot` to `path`, an uncompressed .npz.

    The file appears under its name only when it is complete and on the disk; what was there before stays until then.

    Raises:
        OSError: It cannot be written.
        TypeError: An array that holds no numbers.
    """
    text = json.dumps({"format": _FORMAT, **meta})
    entries: dict[str, Any] = {_META: np.frombuffer(text.encode(), np.uint8), **arrays}
    members = [_member(name, np.asarray(array, order="C")) for name, array in entries.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    (snapshot or _native.TrainingSnapshot([], None)).write(path, members)


def _member(name: str, array: npt.NDArray[Any]) -> tuple[str, str, tuple[int, ...], npt.NDArray[np.uint8]]:
    """Name, type, shape and bytes of an array."""
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected an array of numbers, got {array.dtype}")
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return name, array.dtype.name, array.shape, little_endian.reshape(-1).view(np.uint8)


def load(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read what `save` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or no training state.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        raise ValueError(f"{path}: damaged, or not a training state ({error})") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError(f"{path}: damaged, or not a training state (a member is no array)")
    if not isinstance(meta, dict) or meta.pop("format", None) != _FORMAT:
        raise ValueError(f"{path}: not a training state of this version")
    return meta, arrays


@dataclass(frozen=True)
class State:
    """All that a training state holds, checked as far as it can be without the run.

    Attributes:
        run: What a resumption must have in common.
        finished: Whether the run has ended for good.
        iterations: Updates of the optimiser.
        counters: ``epoch``, ``batch``, ``batches_done``, ``skipped_steps`` and ``updates_before_epoch``.
        epoch_metrics: Sums over the epoch so far.
        history: Epochs and steps.
        weights: float32 arrays by key.
        moments: float32 arrays by name.
        callbacks: State and arrays of each callback.
    """

    run: dict[str, Any]
    finished: bool
    iterations: int
    counters: dict[str, int]
    epoch_metrics: Metrics
    history: History
    weights: dict[str, npt.NDArray[np.float32]]
    moments: dict[str, npt.NDArray[np.float32]]
    callbacks: dict[str, tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]]


COUNTERS = ("epoch", "batch", "batches_done", "skipped_steps", "updates_before_epoch")


def read(path: Path) -> State:
    """Read what `save` wrote, and check all of it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or no training state.
    """
    return parse(path, *load(path))


def parse(path: Path, meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> State:
    """Check all of what `load` read from `path`.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return _parse(meta, arrays)
    except KeyError as error:
        raise ValueError(f"{path}: damaged: it has no {error}; {REMEDY}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged: {error}; {REMEDY}") from error


def _parse(meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> State:
    weights, moments, of_callbacks = (_below(f"{kind}/", arrays) for kind in ("weights", "moments", "callbacks"))
    if meta["moments"] != list(moments):
        raise ValueError("it has not all moments that it lists")
    run, finished = dict(meta["run"]), meta["finished"]
    if not isinstance(finished, bool):
        raise TypeError(f"finished: expected true or false, got {finished!r}")
    # Metrics may be NaN; a loss is a number.
    metrics = {
        str(name): (_number(total), as_float(name, weight)) for name, (total, weight) in _items(meta, "epoch_metrics")
    }
    epochs = [{str(name): _number(value) for name, value in epoch.items()} for epoch in meta["epochs"]]
    steps = _steps(arrays["history/steps"])
    callbacks = {}
    for name, state in _items(meta, "callbacks"):
        callbacks[str(name)] = (dict(state), _below(f"{name}/", of_callbacks))
    return State(
        run=run,
        finished=finished,
        iterations=as_step("iterations", meta["iterations"]),
        counters={name: as_step(name, meta[name]) for name in COUNTERS},
        epoch_metrics=Metrics(metrics),
        history=History(epochs, [(float(loss), float(rate)) for loss, rate in steps.tolist()]),
        weights={key: as_float32(key, array) for key, array in weights.items()},
        moments={name: as_float32(name, array) for name, array in moments.items()},
        callbacks=callbacks,
    )


def _steps(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Loss and rate of every step."""
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"history/steps: expected floats [n, 2], got {array.dtype} {list(array.shape)}")
    return array.astype(np.float64, copy=False)


def _items(meta: Mapping[str, Any], name: str) -> Any:
    return meta[name].items()


def _number(value: Any) -> float:
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _below(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
