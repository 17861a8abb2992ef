"""Saving and loading encoders.

Our own format is a safetensors file with the configuration and checksums in its header; `SparseMixer.save` and
`SparseMixer.load` use it. Weights alone are read from many formats (see `sparse_mixer.SparseMixer.load_weights`) and
written as ``.weights.h5``, which TensorFlow reads, and ``.npz``.

No file is ever executed: readers look at tensors and at a configuration whose keys and names come from a closed list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sparse_mixer import _flax, _native
from sparse_mixer._construction import make_native
from sparse_mixer._durable import replacing
from sparse_mixer._extras import require
from sparse_mixer._native import CheckpointError as CheckpointError
from sparse_mixer._presets import note, preset
from sparse_mixer._stored_config import CONFIG_KEY as _CONFIG_KEY
from sparse_mixer._stored_config import resolve
from sparse_mixer._stored_config import stored_config as stored_config
from sparse_mixer._weight_files import WeightFile, open_weights

if TYPE_CHECKING:
    from sparse_mixer.networks import SparseMixer

Encoder = TypeVar("Encoder", bound="SparseMixer")
PathLike = str | os.PathLike[str]

_NAME_KEY = "name"
_WORD_TABLE = "word_embeddings/embeddings"
_SHOWN = 5


class Mismatch(NamedTuple):
    """A tensor that was found and cannot be used."""

    name: str
    """Our name of the weight."""
    file_name: str
    """The file's name of it."""
    expected: str
    """What is needed."""
    found: str
    """What the file has."""

    def __str__(self) -> str:
        return f"{self.name} (expected {self.expected}, '{self.file_name}' has {self.found})"


@dataclass(frozen=True)
class LoadReport:
    """What a file offers of an encoder's weights.

    Attributes:
        path: The file.
        format: Its format: ``"safetensors"``, ``"tensor_bundle"``, ``"h5"``, ...
        scheme: How it names weights: ``"keras"``, ``"tf_checkpoint"``, ``"flax"``, ``"huggingface"``, ...
        prefix: Where in the file the encoder is.
        loaded: The file's name of each weight that fits, by our name.
        missing: Weights that the file does not have.
        unexpected: Tensors below `prefix` that are no weight of the encoder. Heads and optimiser state elsewhere in the
            file are not counted.
        shape: Weights of another shape.
        dtype: Weights that are not floating-point numbers.
    """

    path: str
    format: str
    scheme: str
    prefix: str
    loaded: Mapping[str, str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    shape: Sequence[Mismatch]
    dtype: Sequence[Mismatch]

    @property
    def complete(self) -> bool:
        """Whether file and encoder have exactly the same weights."""
        return not (self.missing or self.unexpected or self.shape or self.dtype)

    def summary(self) -> str:
        """What does not fit, in one line; at most five names of each kind."""
        kinds: dict[str, Sequence[object]] = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.shape,
            "of another type": self.dtype,
        }
        parts = []
        for kind, names in kinds.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            if names:
                parts.append(f"{kind}: {', '.join(map(str, names[:_SHOWN]))}{more}")
        return "; ".join(parts)

    def __str__(self) -> str:
        where = f" below '{self.prefix}'" if self.prefix else ""
        head = f"{self.path} ({self.format}, names: {self.scheme}){where}: {len(self.loaded)} weights fit"
        return head if self.complete else f"{head}; {self.summary()}"

    def require_complete(self) -> None:
        """Raise unless `complete`.

        Raises:
            CheckpointError: Names what does not fit.
        """
        if not self.complete:
            raise CheckpointError(f"{self.path}: the weights do not fit this encoder; {self.summary()}")


# Writing ------------------------------------------------------------------------------------------------------------


# Bytes: some milliseconds' worth.
_H5_PIECE = 4 << 20


def save(encoder: SparseMixer, path: PathLike, *, file_format: str | None = None) -> None:
    """`SparseMixer.save`."""
    target = os.fspath(path)
    kind = _format_of(target) if file_format is None else file_format
    if kind == "safetensors":
        _native.save([("", encoder._native)], target, kind, _metadata(encoder))
    elif kind == "npz":
        _native.save([("", encoder._native)], target, kind, {})
    elif kind == "weights_h5":
        _save_weights_h5(encoder, target)
    else:
        raise ValueError(f"file_format: expected 'safetensors', 'npz' or 'weights_h5', got {kind!r}")


def _format_of(path: str) -> str:
    if path.endswith(".npz"):
        return "npz"
    if path.endswith(".weights.h5"):
        return "weights_h5"
    if path.endswith((".h5", ".keras", ".ckpt", ".pt", ".bin", ".msgpack")):
        raise ValueError(
            f"path: {path!r} has the ending of a format that is not written; use .safetensors, .npz or .weights.h5"
        )
    return "safetensors"


def _metadata(encoder: SparseMixer) -> dict[str, str]:
    """What the header of our own format says of the encoder."""
    try:
        return {_CONFIG_KEY: json.dumps(encoder.get_config()), _NAME_KEY: encoder.name}
    except TypeError as error:
        raise ValueError(
            f"an encoder with a Python callable among its arguments cannot be saved with its configuration ({error}); "
            "save its weights alone as .npz, and give load() the configuration"
        ) from None


def _save_weights_h5(encoder: SparseMixer, path: str) -> None:
    """Write what ``tf_keras.Model(net.inputs, net(net.inputs)).save_weights`` writes for TensorFlow's class."""
    h5py = require("h5py", "h5")
    names = _weights_h5_names(encoder)
    # The weights of this moment, without copies of all of them.
    snapshot = encoder._native.astype(encoder.dtype)
    # The temporary file is locked as it is.
    with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file, _dropped_on_failure(temporary):
        # Keras asks for this group although the model itself has no variables.
        file.create_group("vars")
        for index, name in enumerate(names):
            _write_h5(file, f"layers/sparse_mixer/{name}", snapshot.get_weight(index))
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


def _weights_h5_names(encoder: SparseMixer) -> list[str]:
    """The names of all weights in ``.weights.h5``; refuses weights that TensorFlow's class would not have."""
    arguments, seed = encoder.arguments, encoder._seed
    keras: dict[str, Any] = {
        "semantics": "keras",
        "moe_residual": None,
        "project_embeddings": None,
        "expert_inner_dim": None,
    }
    specs = _native.weight_specs(dataclasses.replace(arguments, **keras).native_config(seed))
    theirs = {(name, tuple(shape)) for name, shape in specs}
    names = []
    for name, shape in encoder._native.weight_specs():
        keys = _native.foreign_names("weights_h5", name, shape)
        if not keys or (name, tuple(shape)) not in theirs:
            raise ValueError(
                f"file_format: TensorFlow's encoder has no {name} of shape {list(shape)} (it computes other functions: "
                "see docs/paper-semantics.md); save as .safetensors or .npz instead"
            )
        names.append(keys[0])
    return names


# Reading ------------------------------------------------------------------------------------------------------------


def load(
    cls: type[Encoder],
    path: PathLike,
    *,
    config: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> Encoder:
    """`SparseMixer.load`."""
    with contextlib.closing(open_weights(path)) as file:
        stored = stored_config(file, os.fspath(path)) if config is None else None
        given = config if stored is None else stored
        if given is None:
            raise ValueError(
                f"config: {os.fspath(path)} holds weights without a configuration; give the constructor's arguments "
                "as config={...}, or build the encoder and call load_weights"
            )
        return _build(cls, file, given, prefix, num_threads, isa, changes=changes, stored=stored is not None)


def from_flax(
    cls: type[Encoder],
    params: PathLike | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    prefix: str | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> Encoder:
    """`SparseMixer.from_flax`."""
    with contextlib.closing(open_flax(params)) as file:
        arguments, ignored = _flax.read_flax_config(config, _vocab_size(file))
        encoder = _build(cls, file, arguments, prefix, num_threads, isa, changes=changes)
    if ignored:
        import logging  # most programs never need it

        log = logging.getLogger("sparse_mixer")
        log.info("ignored keys of the configuration that do not belong to the encoder: %s", ", ".join(ignored))
    encoder.ignored_config_keys = tuple(ignored)
    return encoder


def from_preset(
    cls: type[Encoder],
    name: str,
    weights: PathLike | Mapping[str, Any] | None = None,
    *,
    prefix: str | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> Encoder:
    """`SparseMixer.from_preset`."""
    config = dict(preset(name))
    if weights is None:
        if prefix is not None:
            raise ValueError("prefix: says where in a file the encoder is, but there are no weights to read")
        encoder = cls(**{**config, **changes}, num_threads=num_threads, isa=isa)
        encoder._note = note(name)
        return encoder
    with contextlib.closing(open_weights(weights)) as file:
        if "vocab_size" not in changes:
            config["vocab_size"] = _vocab_size(file) or config["vocab_size"]
        return _build(cls, file, config, prefix, num_threads, isa, changes=changes)


def _build(
    cls: type[Encoder],
    file: WeightFile,
    config: Mapping[str, Any],
    prefix: str | None,
    num_threads: int | None,
    isa: str | None,
    *,
    changes: Mapping[str, Any] | None = None,
    stored: bool = False,
) -> Encoder:
    """An encoder with the constructor's arguments `config` and `changes`, and the weights of `file`; none are drawn."""
    arguments, seed, specs = resolve(cls, file, config, changes or {}, stored=stored)
    plan = file.plan(specs, prefix)
    _report(file, plan, optional=()).require_complete()
    native = make_native(arguments, seed, file.provider(plan), num_threads, isa)
    encoder = object.__new__(cls)
    encoder._assemble(arguments, native, seed, file.metadata.get(_NAME_KEY, "sparse_mixer"))
    encoder.trainable = True
    return encoder


def read_adam_state(
    encoder: SparseMixer, source: PathLike | Mapping[str, Any]
) -> tuple[int, dict[str, npt.NDArray[np.float32]]]:
    """Read the state of the Adam optimiser in a checkpoint of the paper's JAX code.

    Args:
        encoder: The encoder that the checkpoint's parameters fit; it is not changed.
        source: As in `SparseMixer.from_flax`.

    Returns:
        Number of updates, and moments by name: ``AdamW(...).set_state(*read_adam_state(encoder, source))`` continues
        the training of the encoder alone. Moments of heads are not among them.

    Raises:
        CheckpointError: The file is damaged, has no such state, or is of another encoder.
        OSError: It cannot be read.
    """
    with contextlib.closing(open_flax(source)) as file:
        return _flax.read_adam_state(file, encoder._native.weight_specs())


def open_flax(params: PathLike | Mapping[str, Any]) -> WeightFile:
    """Open a checkpoint, or wrap a mapping of slash paths to arrays, or of nested mappings as Flax has them."""
    return open_weights(dict(_leaves(params)) if isinstance(params, Mapping) else params)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Slash paths and arrays of a mapping that may be nested, as Flax keeps its parameters."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}/")
        else:
            yield f"{path}{name}", value


def _vocab_size(file: WeightFile) -> int | None:
    """Rows of the word table in `file`, whatever its names; None if there is no such table, or several sizes."""
    endings = {
        name
        for scheme in ("keras", "tf_checkpoint", "weights_h5", "flax", "huggingface")
        for name in _native.foreign_names(scheme, _WORD_TABLE, [1, 1])
    }
    sizes = {
        shape[0]
        for name, _, shape in file.entries()
        if len(shape) == 2 and any(f".{name}".endswith((f"/{ending}", f".{ending}")) for ending in endings)
    }
    return sizes.pop() if len(sizes) == 1 else None


def load_report(encoder: SparseMixer, source: PathLike | Mapping[str, Any], *, prefix: str | None = None) -> LoadReport:
    """`SparseMixer.load_report`."""
    with contextlib.closing(open_weights(source)) as file:
        return _report(file, file.plan(encoder._native.weight_specs(), prefix), _optional(encoder))


def load_weights(
    encoder: SparseMixer,
    source: PathLike | Mapping[str, Any],
    *,
    strict: bool = True,
    prefix: str | None = None,
) -> LoadReport:
    """`SparseMixer.load_weights`."""
    with contextlib.closing(open_weights(source)) as file:
        plan = file.plan(encoder._native.weight_specs(), prefix)
        report = _report(file, plan, _optional(encoder))
        if strict:
            report.require_complete()
        elif not report.loaded:
            raise CheckpointError(f"{report.path}: none of the encoder's weights is in the file; {report.summary()}")
        file.load_into(encoder._native, plan)
    return report


def _optional(encoder: SparseMixer) -> tuple[str, ...]:
    """Weights that no call uses: the word table beside an own embedding layer."""
    return () if encoder.arguments.embedding_layer is None else (_WORD_TABLE,)


def _report(file: WeightFile, plan: _native.LoadPlan, optional: Sequence[str]) -> LoadReport:
    return LoadReport(
        path=file.path,
        format=file.format,
        scheme=plan.scheme,
        prefix=plan.root,
        loaded=dict(plan.loaded),
        missing=[name for name in plan.missing if name not in optional],
        unexpected=plan.unexpected,
        shape=[Mismatch(*fields) for fields in plan.shape_mismatches],
        dtype=[Mismatch(*fields) for fields in plan.dtype_mismatches],
    )
