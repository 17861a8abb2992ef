"""Opening weight files of every format, told by their content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.checkpoints.keras_h5 import HDF5_MAGIC, H5File, has_keras_weights
from sparse_mixer.checkpoints.weight_files import ArrayMapping, NativeFile, WeightFile


def open_weights(source: PathLike | Mapping[str, Any], argument: str = "source") -> WeightFile:
    """Open a weight file, or wrap a mapping of names to arrays.

    Args:
        source: A file or folder in any format of this module, told by its content; or a mapping.
        argument: What `source` is called in messages.

    Raises:
        CheckpointError: It is damaged, or of a kind that is not read.
        OSError: It cannot be read.
        TypeError: It is neither.
        ImportError: An HDF5 file without h5py.
    """
    if isinstance(source, Mapping):
        return ArrayMapping(source)
    path = file_name(source, argument)
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(8)
        if start == HDF5_MAGIC:
            return H5File(path)
        if start.startswith(b"PK") and has_keras_weights(path):
            return H5File(path, in_archive=True)
    return NativeFile(path)
