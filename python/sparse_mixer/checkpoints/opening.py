"""Opening weight files of every format, told by their content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.checkpoints.keras_h5 import HDF5_MAGIC, H5File, has_keras_weights
from sparse_mixer.checkpoints.weight_files import ArrayMapping, NativeFile, WeightFile

# Weights in folders of Hugging Face's TensorFlow models and of KerasHub, where there is no safetensors file.
_OF_FOLDERS = ("tf_model.h5", "model.weights.h5")


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
    if os.path.isdir(path) and not any(map(_is_model, os.listdir(path))):
        found = [name for name in _OF_FOLDERS if os.path.isfile(os.path.join(path, name))]
        path = os.path.join(path, *found[:1])
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(8)
        if start == HDF5_MAGIC:
            return H5File(path)
        if start.startswith(b"PK") and has_keras_weights(path):
            return H5File(path, in_archive=True)
    return NativeFile(path)


def _is_model(name: str) -> bool:
    """Whether a file of this name has the weights of a folder, or some of them."""
    return name.startswith("model") and name.endswith(".safetensors")
