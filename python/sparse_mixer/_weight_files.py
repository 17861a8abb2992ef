"""Weight files of every format behind one interface: list, match, read.

safetensors, Flax, TensorFlow and ``.npz`` files are read by the core, HDF5 files through h5py (extra ``h5``), mappings
of arrays as they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._extras import require
from sparse_mixer._native import CheckpointError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Entry = tuple[str, str, Sequence[int]]
Wanted = Sequence[tuple[str, Sequence[int]]]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_KERAS_WEIGHTS = "model.weights.h5"
# What the weights in a .keras file may take on disk, and a dataset in memory, beyond the file's size.
_MAX_INFLATED_BEYOND_FILE = 60 << 20
_MAX_DIRECTORY_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20


class WeightFile(Protocol):
    """A file's tensors: listed at once, read one at a time."""

    path: str
    format: str
    metadata: Mapping[str, str]

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every tensor."""

    def read(self, index: int) -> Array:
        """The tensor at `index`; bfloat16 is widened to float32."""

    def plan(self, wanted: Wanted, prefix: str | None) -> _native.LoadPlan:
        """Match the `wanted` weights, names and shapes in Keras order, with the file's tensors."""

    def provider(self, plan: _native.LoadPlan) -> Any:
        """What `_native.Encoder` takes to get its weights from this file."""

    def load_into(self, native: _native.Encoder, plan: _native.LoadPlan) -> None:
        """Replace the weights of `native` that `plan` has found, all or none."""

    def close(self) -> None:
        """Let go of the file."""


def open_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> WeightFile:
    """Open a weight file, or wrap a mapping of names to arrays.

    Args:
        source: A file or folder in any format of this module, told by its content; or a mapping.

    Raises:
        CheckpointError: It is damaged, or of a kind that is not read.
        OSError: It cannot be read.
        ImportError: An HDF5 file without h5py.
    """
    if isinstance(source, Mapping):
        return ArrayMapping(source)
    path = os.fspath(source)
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(8)
        if start == _HDF5_MAGIC:
            return H5File(path)
        if start.startswith(b"PK") and _has_keras_weights(path):
            return H5File(path, in_archive=True)
    return NativeFile(path)


def _has_keras_weights(path: str) -> bool:
    """Whether the ZIP archive at `path` is a ``.keras`` file. Reads its end only: Keras archives have few members."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _MAX_DIRECTORY_BYTES))
        end = file.read()
    record = end[end.rfind(b"PK\x05\x06") :]
    if not record.startswith(b"PK") or len(record) < 22 or b"PK\x06\x07" in end:
        return False
    directory_bytes = int.from_bytes(record[12:16], "little")
    return directory_bytes < len(end) and _KERAS_WEIGHTS.encode() in end


class NativeFile:
    """A file that the core reads."""

    def __init__(self, path: str) -> None:
        self._checkpoint = _native.Checkpoint(path)
        self.path = path
        self.format = self._checkpoint.format
        self.metadata: Mapping[str, str] = self._checkpoint.metadata
        self._entries = self._checkpoint.entries()

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every tensor."""
        return self._entries

    def read(self, index: int) -> Array:
        """The tensor at `index`; bfloat16 is widened to float32."""
        _, dtype, shape = self._entries[index]
        content = self._checkpoint.read(index)
        if dtype == "bfloat16":
            halves = np.frombuffer(content, "<u2").astype(np.uint32)
            return (halves << 16).view(np.float32).reshape(shape)
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def plan(self, wanted: Wanted, prefix: str | None) -> _native.LoadPlan:
        """Match the `wanted` weights with the file's tensors."""
        return self._checkpoint.plan(wanted, prefix)

    def provider(self, plan: _native.LoadPlan) -> Any:
        """The plan itself: the core reads without a detour through Python."""
        return plan

    def load_into(self, native: _native.Encoder, plan: _native.LoadPlan) -> None:
        """Replace the weights of `native` that `plan` has found, all or none."""
        native.load_planned(plan)

    def close(self) -> None:
        """Nothing to do: the file is let go of together with this object and its plans."""


class _PythonFile:
    """What files that Python reads have in common."""

    path: str

    def entries(self) -> Sequence[Entry]:
        raise NotImplementedError

    def read(self, index: int) -> Array:
        raise NotImplementedError

    def plan(self, wanted: Wanted, prefix: str | None) -> _native.LoadPlan:
        """Match the `wanted` weights with the file's tensors."""
        return _native.plan_load(self.entries(), wanted, prefix, path=self.path)

    def provider(self, plan: _native.LoadPlan) -> Callable[[str, tuple[int, ...]], Floats]:
        """A function from name and shape of each weight, in Keras order, to its values."""
        reads = {index: (entry, swap) for index, entry, swap in plan.reads}
        order = iter(range(len(reads) + len(plan.missing)))

        def provide(name: str, shape: tuple[int, ...]) -> Floats:
            entry, swap = reads[next(order)]
            return self.weight(entry, swap, shape)

        return provide

    def load_into(self, native: _native.Encoder, plan: _native.LoadPlan) -> None:
        """Replace the weights of `native` that `plan` has found, all or none."""
        specs = native.weight_specs()
        weights = [self.weight(entry, swap, specs[index][1]) for index, entry, swap in plan.reads]
        native.assign([index for index, _, _ in plan.reads], weights)

    def close(self) -> None:
        """Nothing to do for arrays."""

    def weight(self, entry: int, swap: bool, shape: Sequence[int]) -> Floats:
        """The array at `entry` as a weight of ours of `shape`, its two leading axes swapped if `swap`."""
        array = self.read(entry)
        if swap:
            array = np.swapaxes(array, 0, 1)
        return np.require(array.reshape(shape), np.float32, ["C", "A", "E"])


class ArrayMapping(_PythonFile):
    """A mapping of names to arrays."""

    format = "mapping"
    path = "the mapping of weights"

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.metadata: Mapping[str, str] = {}
        self._names = [str(name) for name in arrays]
        self._arrays = [np.asarray(array) for array in arrays.values()]

    def entries(self) -> Sequence[Entry]:
        """Name, numpy type name and shape of every array."""
        return [(name, a.dtype.name, a.shape) for name, a in zip(self._names, self._arrays, strict=True)]

    def read(self, index: int) -> Array:
        """The array at `index`."""
        return self._arrays[index]


class H5File(_PythonFile):
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
        return [(dataset.name.lstrip("/"), dataset.dtype.name, dataset.shape) for dataset in self._datasets]

    def read(self, index: int) -> Array:
        """The dataset at `index`."""
        with self._errors():
            array: Array = self._datasets[index][()]
            return array

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
