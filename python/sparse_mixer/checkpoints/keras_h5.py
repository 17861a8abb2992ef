"""Keras's HDF5 files and archives with such, read through h5py (extra ``h5``)."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from sparse_mixer._core.extras import require
from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.weight_files import Array, Entry, PythonFile, type_name, with_bfloat16_widened

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_KERAS_WEIGHTS = "model.weights.h5"
# What the weights in a .keras file may take on disk, and a dataset in memory, beyond the file's size.
_MAX_INFLATED_BEYOND_FILE = 60 << 20
_MAX_DIRECTORY_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20


def has_keras_weights(path: str) -> bool:
    """Whether the ZIP archive at `path` is a ``.keras`` file. Reads its end only: Keras archives have few members."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _MAX_DIRECTORY_BYTES))
        end = file.read()
    record = end[end.rfind(b"PK\x05\x06") :]
    if not record.startswith(b"PK") or len(record) < 22 or b"PK\x06\x07" in end:
        return False
    directory_bytes = int.from_bytes(record[12:16], "little")
    return directory_bytes < len(end) and _KERAS_WEIGHTS.encode() in end


class H5File(PythonFile):
    """Keras's HDF5 files: ``.weights.h5``, legacy ``.h5``, and the weights inside ``.keras`` archives.

    Only plain datasets are looked at. Links to other places, virtual datasets and external storage, which could make
    a file read others, are refused; configurations and layers are not looked at, so nothing can be executed.
    """

    def __init__(self, path: str, *, in_archive: bool = False) -> None:
        h5py = require("h5py", "h5")
        self.path = path
        self.format = "keras" if in_archive else "h5"
        self.metadata: Mapping[str, str] = {}
        self._open = contextlib.ExitStack()
        with self._errors(), contextlib.ExitStack() as opened:
            content = opened.enter_context(_unpacked(path)) if in_archive else path
            self._file = opened.enter_context(h5py.File(content, "r"))
            self._datasets = list(self._walk(h5py))
            self._open = opened.pop_all()

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every dataset; names are paths in the file."""
        return [(dataset.name.lstrip("/"), type_name(dataset.dtype), dataset.shape) for dataset in self._datasets]

    def read(self, index: int) -> Array:
        """The dataset at `index`; bfloat16, which HDF5 keeps as two opaque bytes, is widened to float32."""
        with self._errors():
            return with_bfloat16_widened(np.asarray(self._datasets[index][()]))

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _walk(self, h5py: Any) -> Iterator[Any]:
        """All datasets, each once, in the order of their paths."""
        largest = os.path.getsize(self.path) + _MAX_INFLATED_BEYOND_FILE
        seen = set()
        pending = [self._file]
        while pending:
            group = pending.pop()
            for name in sorted(group, reverse=True):
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise CheckpointError(f"{self.path}: '{group.name}/{name}' is a link to another place")
                item = group[name]
                # A group that contains itself would never end.
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(item, h5py.Group):
                    pending.append(item)
                elif isinstance(item, h5py.Dataset):
                    if item.is_virtual or item.external:
                        raise CheckpointError(f"{self.path}: '{item.name}' keeps its content in another file")
                    if item.shape is None:
                        continue
                    if item.nbytes > largest:
                        raise CheckpointError(
                            f"{self.path}: '{item.name}' would take {item.nbytes} bytes, far more than the file"
                        )
                    yield item

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what h5py raises on damaged files into our error; missing files stay what they are."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # h5py, zipfile and the decompressors each have their own
            # A damaged archive makes zipfile seek to places that cannot be.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise CheckpointError(f"{self.path}: not a usable HDF5 file: {error}") from error


def _unpacked(path: str) -> IO[bytes]:
    """The weights inside the ``.keras`` archive at `path`, in a temporary file that disappears when it is closed."""
    left = os.path.getsize(path) + _MAX_INFLATED_BEYOND_FILE
    with contextlib.ExitStack() as on_failure, zipfile.ZipFile(path) as archive:
        unpacked = on_failure.enter_context(tempfile.TemporaryFile())
        with archive.open(_KERAS_WEIGHTS) as member:
            while piece := member.read(_PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise CheckpointError(f"{path}: {_KERAS_WEIGHTS} is far larger than the archive")
                unpacked.write(piece)
        on_failure.pop_all()
        return unpacked
