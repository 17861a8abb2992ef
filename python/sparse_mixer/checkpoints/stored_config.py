"""From a configuration, often a stranger's, to checked arguments; nothing larger is made than the file can fill."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from sparse_mixer import _native
from sparse_mixer._core.arguments import Arguments, declared
from sparse_mixer._core.construction import weight_seed
from sparse_mixer._core.encoder import Encoder
from sparse_mixer._core.json_text import mapping_of
from sparse_mixer._native import CheckpointError
from sparse_mixer.checkpoints.google_bert import read_google_bert
from sparse_mixer.checkpoints.hugging_face import read_hugging_face
from sparse_mixer.checkpoints.keras_hub import read_keras_hub
from sparse_mixer.checkpoints.weight_files import TargetWeights, WeightFile

CONFIG_KEY = "config"
# A layer of any kind has at least two layer norms, or one and a router, and two dense layers.
_LEAST_TENSORS_PER_LAYER = 8


def stored_config(file: WeightFile, path: str) -> Mapping[str, Any] | None:
    """The constructor's arguments that come with the weight file at `path`; None if none do.

    Raises:
        CheckpointError: They are damaged, or those of a model that is not an encoder of ours.
    """
    text = file.metadata.get(CONFIG_KEY)
    if text is None:
        names = [name for name, _, _ in file.entries()]
        config = read_keras_hub(path) or read_hugging_face(path, names)
        return read_google_bert(path, names) if config is None else config
    return mapping_of(text, f"{path}: the configuration", CheckpointError)


def resolve(
    cls: type[Encoder], file: WeightFile, config: Mapping[str, Any], changes: Mapping[str, Any], *, stored: bool
) -> tuple[Arguments, int, TargetWeights]:
    """What an encoder that `file` has the weights of would be: arguments, seed, and names and shapes of its weights.

    Args:
        cls: Its class, for the defaults of its constructor.
        file: The weight file.
        config: The constructor's arguments.
        changes: Arguments that replace those of `config`.
        stored: Whether `config` comes with the file, which is named then where it is wrong.

    Raises:
        CheckpointError: More layers than the file has tensors for, or a stored configuration that cannot be.
        ValueError, TypeError: Another configuration that cannot be.
    """
    _require_room(file, {**config, **changes}.get("num_layers"))
    try:
        return _resolve(cls, {**config, **changes})
    except (TypeError, ValueError):
        if stored:
            try:
                _resolve(cls, config)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{file.path}: the configuration cannot be used: {error}") from None
        raise


def _resolve(cls: type[Encoder], config: Mapping[str, Any]) -> tuple[Arguments, int, TargetWeights]:
    arguments = _arguments(cls, config)
    seed = weight_seed(arguments)
    return arguments, seed, _native.weight_specs(arguments.core_config(seed))


def _require_room(file: WeightFile, num_layers: Any) -> None:
    """Refuse more layers than the file can have weights of, before anything is made for each of them.

    Widths and vocabularies need no such rule: they cost nothing until the shapes of the weights are compared.
    """
    tensors = len(file.entries())
    if isinstance(num_layers, int) and num_layers > max(1, tensors // _LEAST_TENSORS_PER_LAYER):
        raise CheckpointError(
            f"{file.path}: the weights do not fit this encoder; {tensors} tensors are too few for {num_layers} layers"
        )


def _arguments(cls: type[Encoder], config: Mapping[str, Any]) -> Arguments:
    """Checked arguments from `config`, the constructor's defaults filled in."""
    # Some arguments are no part of what the encoder computes.
    unknown = sorted(set(config) - set(declared()) - {"name", "trainable"})
    if unknown:
        raise TypeError(f"config: unknown arguments {', '.join(map(repr, unknown))}")
    parameters = signature(cls.__init__).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not Parameter.empty
    }
    return Arguments({**defaults, **config})
