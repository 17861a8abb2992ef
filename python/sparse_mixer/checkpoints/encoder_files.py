"""`SparseMixer.save`, `SparseMixer.load` and their kin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.checks import as_bool, as_mapping, as_text
from sparse_mixer._core.construction import make_core, provider
from sparse_mixer._core.encoder import Encoder
from sparse_mixer._core.overflow import overflowing, warn_of_overflow
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._native import CheckpointError as CheckpointError
from sparse_mixer.checkpoints import flax
from sparse_mixer.checkpoints.endings import format_of
from sparse_mixer.checkpoints.hugging_face import Layout, read_layout
from sparse_mixer.checkpoints.hugging_face_writer import FILE_FORMAT, save_hugging_face
from sparse_mixer.checkpoints.keras_h5_writer import can_be_weights_h5, save_weights_h5
from sparse_mixer.checkpoints.opening import open_weights
from sparse_mixer.checkpoints.presets import note, preset
from sparse_mixer.checkpoints.report import LoadReport, Mismatch
from sparse_mixer.checkpoints.stored_config import CONFIG_KEY as _CONFIG_KEY
from sparse_mixer.checkpoints.stored_config import resolve
from sparse_mixer.checkpoints.stored_config import stored_config as stored_config
from sparse_mixer.checkpoints.weight_files import TargetWeights, WeightFile

AnyEncoder = TypeVar("AnyEncoder", bound=Encoder)

_NAME_KEY = "name"
_WORD_TABLE = "word_embeddings/embeddings"


# Writing ------------------------------------------------------------------------------------------------------------


def save(encoder: Encoder, path: PathLike, *, file_format: str | None = None, packed: bool = False) -> None:
    """`SparseMixer.save`."""
    target = file_name(path)
    packed = as_bool("packed", packed)
    if file_format is None:
        kind = "weights_h5" if target.endswith(".weights.h5") else format_of(target, _formats(encoder))
    else:
        kind = as_text("file_format", file_format)
    if packed and kind != "safetensors":
        raise ValueError(f"packed: only our own format holds packed weights, got file_format {kind!r}")
    if kind == "safetensors":
        _native.save([("", encoder.core)], target, kind, metadata(encoder), packed=packed)
    elif kind.startswith(FILE_FORMAT):
        save_hugging_face(encoder, target, file_format=kind)
    elif kind == "npz":
        _native.save([("", encoder.core)], target, kind, {})
    elif kind == "weights_h5":
        save_weights_h5(encoder, target)
    else:
        raise ValueError(f"file_format: expected 'safetensors', 'npz', 'weights_h5' or 'huggingface', got {kind!r}")


def _formats(encoder: Encoder) -> list[str]:
    """The formats that can hold `encoder`'s weights."""
    return ["safetensors", "npz", "weights_h5"] if can_be_weights_h5(encoder) else ["safetensors", "npz"]


def metadata(encoder: Encoder) -> dict[str, str]:
    """What the header of our own format says of the encoder."""
    try:
        return {_CONFIG_KEY: json.dumps(encoder.arguments.exact_config()), _NAME_KEY: encoder.name}
    except TypeError as error:
        raise ValueError(
            f"an encoder with a Python callable among its arguments cannot be saved with its configuration ({error}); "
            "save its weights alone as .npz, and give load() the configuration"
        ) from None


# Reading ------------------------------------------------------------------------------------------------------------


def load(
    cls: type[AnyEncoder],
    path: PathLike,
    *,
    config: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    strict: bool = True,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> AnyEncoder:
    """`SparseMixer.load`."""
    with contextlib.closing(open_weights(path, "path")) as file:
        stored = stored_config(file, file_name(path)) if config is None else None
        given = (None if config is None else as_mapping("config", config)) if stored is None else stored
        if given is None:
            raise ValueError(
                f"config: {file_name(path)} holds weights without a configuration; give the constructor's arguments "
                "as config={...}, or build the encoder and call load_weights"
            )
        options: Any = {"changes": changes, "stored": stored is not None, "strict": strict}
        return build(cls, file, given, prefix, num_threads, isa, **options)


def from_flax(
    cls: type[AnyEncoder],
    params: PathLike | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    prefix: str | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> AnyEncoder:
    """`SparseMixer.from_flax`."""
    with contextlib.closing(open_flax(params, "params")) as file:
        arguments, ignored = flax.read_flax_config(config, _vocab_size(file))
        encoder = build(cls, file, arguments, prefix, num_threads, isa, changes=changes)
    if ignored:
        import logging  # most programs never need it

        log = logging.getLogger("sparse_mixer")
        log.info("ignored keys of the configuration that do not belong to the encoder: %s", ", ".join(ignored))
    encoder.ignored_config_keys = tuple(ignored)
    return encoder


def from_preset(
    cls: type[AnyEncoder],
    name: str,
    weights: PathLike | Mapping[str, Any] | None = None,
    *,
    prefix: str | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> AnyEncoder:
    """`SparseMixer.from_preset`."""
    config = dict(preset(name))
    if weights is None:
        if prefix is not None:
            raise ValueError("prefix: says where in a file the encoder is, but there are no weights to read")
        constructor: Callable[..., AnyEncoder] = cls
        encoder = constructor(**{**config, **changes}, num_threads=num_threads, isa=isa)
        encoder.note = note(name)
        return encoder
    with contextlib.closing(open_weights(weights, "weights")) as file:
        if "vocab_size" not in changes:
            config["vocab_size"] = _vocab_size(file) or config["vocab_size"]
        return build(cls, file, config, prefix, num_threads, isa, changes=changes)


def build(
    cls: type[AnyEncoder],
    file: WeightFile,
    config: Mapping[str, Any],
    prefix: str | None,
    num_threads: int | None,
    isa: str | None,
    *,
    changes: Mapping[str, Any] | None = None,
    stored: bool = False,
    strict: bool = True,
) -> AnyEncoder:
    """An encoder with the constructor's arguments `config` and `changes`, and the weights of `file`.

    Fewer positions, fewer layers or no pooler among the `changes` leave out the weights of the others. None are
    initialised, unless not `strict`: then those that the file does not have, or has in another shape.
    """
    changes = changes or {}
    arguments, seed, specs = resolve(cls, file, config, changes, stored=stored)
    cuts = "max_sequence_length" in changes
    plan = plan_of(file, specs, prefix, cuts=cuts)
    report = make_report(file, plan, optional=())
    if report.unexpected and any(name in changes for name in ("num_layers", "with_pooler")):
        whole = {name: changes[name] for name in changes if name not in ("num_layers", "with_pooler")}
        known = plan_of(file, resolve(cls, file, config, whole, stored=stored)[2], plan.root, cuts=cuts).loaded
        left_out = {name for _, name in known}
        report = replace(report, unexpected=[name for name in report.unexpected if name not in left_out])
    if strict:
        report.require_complete()
        core = make_core(arguments, seed, file.provider(plan), num_threads, isa)
    else:
        report.require_some()
        core = make_core(arguments, seed, provider(arguments, seed), num_threads, isa)
        file.load_into(core, plan)
    encoder = cls.around(arguments, core, seed, file.metadata.get(_NAME_KEY, "sparse_mixer"))
    encoder.trainable = True
    encoder.loaded_from = report
    warn_of_overflow(core, overflowing(core), stacklevel=4)
    return encoder


def plan_of(file: WeightFile, specs: TargetWeights, prefix: str | None, *, cuts: bool = False) -> _native.LoadPlan:
    """Which tensors of `file` are which weights, its layout considered; `cuts` a larger table of positions."""
    layout = read_layout(file.path) if file.format in ("safetensors", "h5") else Layout()
    first = 0 if layout.first_position is None and cuts else layout.first_position
    return file.plan(specs, prefix, first_position=first, zeros=layout.zeros)


def read_adam_state(
    encoder: Encoder, source: PathLike | Mapping[str, Any]
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
        return flax.read_adam_state(file, encoder.core.weight_specs())


def open_flax(params: PathLike | Mapping[str, Any], argument: str = "source") -> WeightFile:
    """Open a checkpoint, or wrap a mapping of slash paths to arrays, or of nested mappings as Flax has them."""
    return open_weights(dict(_leaves(params)) if isinstance(params, Mapping) else params, argument)


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
        for scheme in (
            "keras",
            "tf_checkpoint",
            "weights_h5",
            "flax",
            "huggingface",
            "huggingface_tf",
            "google_bert",
            "keras_hub",
        )
        for name in _native.foreign_names(scheme, _WORD_TABLE, [1, 1])
    }
    sizes = {
        shape[0]
        for name, _, shape in file.entries()
        if len(shape) == 2 and any(f".{name}".endswith((f"/{ending}", f".{ending}")) for ending in endings)
    }
    return sizes.pop() if len(sizes) == 1 else None


def load_report(encoder: Encoder, source: PathLike | Mapping[str, Any], *, prefix: str | None = None) -> LoadReport:
    """`SparseMixer.load_report`."""
    with contextlib.closing(open_weights(source)) as file:
        return make_report(file, plan_of(file, encoder.core.weight_specs(), prefix), optional_weights(encoder))


def load_weights(
    encoder: Encoder,
    source: PathLike | Mapping[str, Any],
    *,
    strict: bool = True,
    prefix: str | None = None,
) -> LoadReport:
    """`SparseMixer.load_weights`."""
    with contextlib.closing(open_weights(source)) as file:
        plan = plan_of(file, encoder.core.weight_specs(), prefix)
        report = make_report(file, plan, optional_weights(encoder))
        if as_bool("strict", strict):
            report.require_complete()
        else:
            report.require_some()
        file.load_into(encoder.core, plan)
    warn_of_overflow(encoder.core, overflowing(encoder.core), stacklevel=3)
    return report


def optional_weights(encoder: Encoder) -> tuple[str, ...]:
    """Weights that no call uses: the word table beside an own embedding layer."""
    return () if encoder.arguments.embedding_layer is None else (_WORD_TABLE,)


def make_report(file: WeightFile, plan: _native.LoadPlan, optional: Sequence[str]) -> LoadReport:
    """What `plan` says of the `file`; missing weights named in `optional` do not count."""
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
