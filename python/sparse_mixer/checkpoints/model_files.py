"""Models in files: the encoder's own format, with the weights of the heads and the model's arguments besides."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sparse_mixer import _native
from sparse_mixer._core.checks import as_text
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._core.variables import Variable, assign_all
from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints import encoder_files, head_files
from sparse_mixer.checkpoints.endings import format_of
from sparse_mixer.checkpoints.hugging_face_writer import (
    FILE_FORMAT,
    WITH_HEADS,
    kind_of,
    save_hugging_face,
    to_pytorch,
)
from sparse_mixer.checkpoints.keras_h5_writer import save_weights_h5
from sparse_mixer.checkpoints.opening import open_weights
from sparse_mixer.checkpoints.stored_config import stored_config
from sparse_mixer.checkpoints.weight_files import Array, WeightFile

_FORMATS = ("safetensors", "npz")
_MODEL_KEY = "model"
ENCODER = "encoder"
"""Where in a model's file the encoder is."""


class StoredModel(Protocol):
    """What this module needs of a model."""

    encoder: Any
    heads: dict[str, Any]

    def get_config(self) -> dict[str, Any]:
        """The arguments besides the encoder, JSON-able."""

    def hugging_face_names(self, kind: str) -> tuple[str, dict[str, str]]:
        """The end of that package's class of the same model, and its names of the heads' weights by our keys."""


def save(model: StoredModel, path: PathLike, *, file_format: str | None = None) -> None:
    """`Model.save`."""
    target = file_name(path)
    if file_format is None:
        kind = "weights_h5" if target.endswith(".weights.h5") else format_of(target, [*_FORMATS, "weights_h5"])
    else:
        kind = as_text("file_format", file_format)
    if kind == "weights_h5":
        names = head_files.weights_h5_names(model)
        shares = any(key.startswith("cls/predictions/") for key in names)
        heads = {names[variable.key]: variable.numpy() for variable in _of_heads(model)}
        save_weights_h5(model.encoder, target, heads, "masked_lm/vars/0" if shares else None)
        return
    if kind.startswith(FILE_FORMAT):
        there = kind_of(model.encoder, kind)
        if there not in WITH_HEADS:
            raise ValueError(f"file_format: {FILE_FORMAT!r} has no models with heads on this encoder, a {there}")
        ending, names = model.hugging_face_names(there)
        heads = {names[v.key]: to_pytorch(v.key, v.numpy()) for v in _of_heads(model)}
        save_hugging_face(model.encoder, target, file_format=kind, ending=ending, heads=heads)
        return
    if kind not in _FORMATS:
        raise ValueError(
            f"file_format: models are written as 'safetensors', 'npz', 'weights_h5' or 'huggingface', got {kind!r}"
        )
    metadata = {}
    if kind == "safetensors":
        about = {"class": type(model).__name__, "config": model.get_config()}
        metadata = encoder_files.metadata(model.encoder) | {_MODEL_KEY: json.dumps(about)}
    parts = [(f"{ENCODER}/", model.encoder.core), *(("", head.core) for head in model.heads.values())]
    _native.save(parts, target, kind, metadata)


def load(
    cls: type,
    kinds: Mapping[str, type],
    encoder_class: Any,
    path: PathLike,
    *,
    num_threads: int | None = None,
    isa: str | None = None,
    **changes: Any,
) -> Any:
    """`Model.load`.

    Args:
        cls: What the file must hold.
        kinds: The models that a file may hold, by name.
        encoder_class: The class of the encoder.
        path: The file.
        num_threads: As in the encoder's constructor.
        isa: As in the encoder's constructor.
        **changes: Arguments of the encoder's constructor that replace those of the file.
    """
    name = file_name(path)
    with contextlib.closing(open_weights(path, "path")) as file:
        text = file.metadata.get(_MODEL_KEY)
        config = stored_config(file, name)
        if text is None or config is None:
            raise ValueError(
                f"path: {name} does not say which model it holds; build the model and call load_weights, or load the "
                "encoder alone with SparseMixer.load"
            )
        try:
            about = json.loads(text)
            kind: Any = kinds[about["class"]]
            arguments = dict(about["config"])
        except (ValueError, RecursionError, KeyError, TypeError):
            raise CheckpointError(f"{name}: the model's configuration is damaged") from None
        if not issubclass(kind, cls):
            raise ValueError(f"path: {name} holds a {kind.__name__}, not a {cls.__name__}")
        if _largest(arguments) > sum(math.prod(shape) for _, _, shape in file.entries()):
            raise CheckpointError(f"{name}: the model's configuration asks for more than the file holds")
        encoder = encoder_files.build(
            encoder_class, file, config, ENCODER, num_threads, isa, changes=changes, stored=True
        )
        try:
            model = kind.from_config(encoder, arguments)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{name}: the model's configuration is damaged: {error}") from None
        variables = _of_heads(model)
        assign_all(variables, _read(file, variables))
        return model


def _largest(config: Any) -> float:
    """The largest number in a configuration: no size in it can be larger than all that is stored."""
    if isinstance(config, dict):
        return max(map(_largest, config.values()), default=0)
    if isinstance(config, list):
        return max(map(_largest, config), default=0)
    return abs(config) if isinstance(config, (int, float)) else 0


def load_weights(model: StoredModel, source: PathLike | Mapping[str, Any]) -> None:
    """`Model.load_weights`."""
    with contextlib.closing(open_weights(source)) as file:
        variables = _of_heads(model)
        places = None if _is_ours(file, variables) else head_files.found(file, model)
        names = _names(file, model)
        if places is None:
            arrays = _read(file, variables, names)
        else:
            arrays = [file.read(places[variable.key]) for variable in variables]
        own = names is None and places is None
        plan = encoder_files.plan_of(file, model.encoder.core.weight_specs(), ENCODER if own else None)
        encoder_files.make_report(file, plan, encoder_files.optional_weights(model.encoder)).require_complete()
        file.load_into(model.encoder.core, plan)
        assign_all(variables, arrays)


def _of_heads(model: StoredModel) -> list[Variable]:
    return [variable for head in model.heads.values() for variable in head.all_variables]


def _is_ours(file: WeightFile, variables: Sequence[Variable]) -> bool:
    """Whether the file has the heads under our keys, as those of `save` have."""
    found = {name for name, _, _ in file.entries()}
    return any(variable.key in found for variable in variables)


def _names(file: WeightFile, model: StoredModel) -> dict[str, str] | None:
    """The names of the heads' weights in a file of Hugging Face, by our keys; None in other files."""
    found = [name for name, _, _ in file.entries()]
    if file.format not in ("safetensors", "mapping") or any(name.startswith(f"{ENCODER}/") for name in found):
        return None
    kinds = [kind for kind in WITH_HEADS if any(name.startswith(f"{kind}.embeddings.") for name in found)]
    return model.hugging_face_names(kinds[0])[1] if kinds else None


def _read(file: WeightFile, variables: Sequence[Variable], names: Mapping[str, str] | None = None) -> list[Array]:
    """The file's arrays under the variables' keys, or under `names` in PyTorch's layout.

    Raises:
        CheckpointError: One is not there, or has another shape.
    """
    found = {name: (index, tuple(shape)) for index, (name, _, shape) in enumerate(file.entries())}
    # PyTorch keeps matrices as [outputs, inputs].
    turned = names is not None
    places = [(variable, variable.key if names is None else names[variable.key]) for variable in variables]
    expected = {key: variable.shape[::-1] if turned else variable.shape for variable, key in places}
    wrong = [key for key, shape in expected.items() if found.get(key, (0, None))[1] != shape]
    if wrong:
        listed = ", ".join(
            f"{key} (expected {expected[key]}, found {found.get(key, (0, 'none'))[1]})" for key in wrong[:5]
        )
        raise CheckpointError(f"{file.path}: the weights do not fit this model's heads: {listed}")
    arrays = [file.read(found[key][0]) for _, key in places]
    return [array.T for array in arrays] if turned else arrays
