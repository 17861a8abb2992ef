"""Keras's ``.weights.h5``, as TensorFlow's class would write it. Needs h5py (extra ``h5``)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.atomic_file import replacing
from sparse_mixer._core.encoder import Encoder
from sparse_mixer._core.extras import require

# Bytes: some milliseconds' worth.
_H5_PIECE = 4 << 20


def save_weights_h5(
    encoder: Encoder, path: str, heads: Mapping[str, npt.NDArray[np.float32]] | None = None, table: str | None = None
) -> None:
    """Write what ``tf_keras.Model(net.inputs, net(net.inputs)).save_weights`` writes for TensorFlow's class.

    Args:
        encoder: The encoder.
        path: The file.
        heads: Weights of a model's heads, by their names in the file.
        table: Under which name the word table stands once more, as a layer that shares it keeps it; None for nowhere.
    """
    h5py = require("h5py", "h5")
    names = _weights_h5_names(encoder)
    # The weights of this moment, without copies of all of them.
    snapshot = encoder.core.astype(encoder.dtype)
    # The temporary file is locked as it is.
    with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file, _dropped_on_failure(temporary):
        # Keras asks for this group although the model itself has no variables.
        file.create_group("vars")
        for index, name in enumerate(names):
            _write_h5(file, f"layers/sparse_mixer/{name}", snapshot.get_weight(index))
        for name, values in (heads or {}).items():
            _write_h5(file, name, values)
        if table is not None:
            _write_h5(file, table, snapshot.get_weight(0))
        for number in range(len(encoder.metrics)):
            mean = "mean" if number == 0 else f"mean_{number}"
            for variable in "01":
                file[f"metrics/{mean}/vars/{variable}"] = 0.0


@contextlib.contextmanager
def _dropped_on_failure(path: str) -> Iterator[None]:
    """If the block fails, what it wrote need not go to the disk, which closing the file makes some systems do."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
        raise


def _write_h5(file: Any, name: str, array: npt.NDArray[np.float32]) -> None:
    """Write one array piece by piece: a disk that is slow with a large one would keep Ctrl-C waiting."""
    dataset = file.create_dataset(name, array.shape, array.dtype)
    if array.nbytes <= _H5_PIECE:
        dataset[...] = array
        return
    rows = max(1, _H5_PIECE * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        dataset[start : start + rows] = array[start : start + rows]


def can_be_weights_h5(encoder: Encoder) -> bool:
    """Whether TensorFlow's class has all weights of `encoder`."""
    try:
        _weights_h5_names(encoder)
    except ValueError:
        return False
    return True


def _weights_h5_names(encoder: Encoder) -> list[str]:
    """The names of all weights in ``.weights.h5``; refuses weights that TensorFlow's class would not have."""
    arguments, seed = encoder.arguments, encoder.weight_seed
    keras: dict[str, Any] = {
        "semantics": "keras",
        "moe_residual": None,
        "project_embeddings": None,
        "expert_inner_dim": None,
    }
    specs = _native.weight_specs(arguments.replace(**keras).core_config(seed))
    theirs = {(name, tuple(shape)) for name, shape in specs}
    names = []
    for name, shape in encoder.core.weight_specs():
        keys = _native.foreign_names("weights_h5", name, shape)
        if not keys or (name, tuple(shape)) not in theirs:
            raise ValueError(
                f"file_format: TensorFlow's encoder has no {name} of shape {list(shape)} (it computes other functions: "
                "see docs/paper-semantics.md); save as .safetensors or .npz instead"
            )
        names.append(keys[0])
    return names
