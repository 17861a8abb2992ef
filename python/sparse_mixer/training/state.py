"""Training state in a file: weights, moments, counters; replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.atomic_file import replacing

_FORMAT = "sparse_mixer training state, version 3"
_META = "meta.json"


def save(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write `meta` (JSON-able) and `arrays` to `path`, an uncompressed .npz.

    The file appears under its name only when it is complete and on the disk; what was there before stays until then.
    """
    text = json.dumps({"format": _FORMAT, **meta})
    entries: dict[str, Any] = {_META: np.frombuffer(text.encode(), np.uint8), **arrays}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **entries)


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
