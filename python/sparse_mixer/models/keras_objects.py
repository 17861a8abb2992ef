"""Objects of Keras, told by their class and their configuration: nothing here imports Keras.

Known are those of ``tf_keras`` (also its ``legacy`` optimisers), of Keras 3 and of the Model Garden. What has no
counterpart here is refused with a message that says what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparse_mixer import optimizers
from sparse_mixer.optimizers import Optimizer

_FRAMEWORKS = frozenset({"keras", "tf_keras", "tensorflow", "official", "tensorflow_addons", "tensorflow_models"})

_NAMES = "'adam', 'adamw', 'sgd', 'adafactor', 'lamb'"
POSSIBLE_OPTIMIZERS = (
    f"possible are one of sparse_mixer.optimizers, the names {_NAMES}, and Keras's Adam, AdamW, SGD, Adafactor and "
    "Lamb, or the Model Garden's AdamWeightDecay and LAMB"
)

# Settings of Keras's optimisers that have no counterpart, with the values that switch them off.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "amsgrad": (False, None),
    "use_ema": (False, None),
    "clipnorm": (None,),
    "clipvalue": (None,),
    "decay": (0.0, None),
    "loss_scale_factor": (None,),
    "gradient_accumulation_steps": (None,),
}


def is_foreign(value: Any) -> bool:
    """Whether `value` is an object of Keras or the Model Garden, or of a subclass of one."""
    return any(kind.__module__.split(".")[0] in _FRAMEWORKS for kind in type(value).__mro__)


def kind_of(value: Any) -> str:
    """The name of the framework's class that `value` is of, or inherits from."""
    for kind in type(value).__mro__:
        if kind.__module__.split(".")[0] in _FRAMEWORKS:
            return kind.__name__
    return type(value).__name__


def config_of(value: Any) -> dict[str, Any]:
    """What the object's ``get_config`` returns."""
    return dict(value.get_config())


def number_of(value: Any) -> float:
    """A number from a variable or tensor of a framework."""
    return float(np.asarray(value.numpy() if hasattr(value, "numpy") else value))


# Optimisers ---------------------------------------------------------------------------------------------------------


def optimizer_of(value: Any) -> Optimizer:
    """An optimiser of ours from a name, an optimiser of Keras, or one of ours, which is returned as it is.

    A foreign optimiser is read once: its settings, and its schedule, which goes on being called. Its moments and its
    number of updates are not.

    Raises:
        ValueError: An unknown name, or a setting that has no counterpart.
        TypeError: Something else.
    """
    if isinstance(value, Optimizer):
        return value
    if isinstance(value, str):
        return _named(value)
    if isinstance(value, type) or not is_foreign(value) or not hasattr(value, "get_config"):
        shown = value.__name__ if isinstance(value, type) else type(value).__name__
        raise TypeError(f"optimizer: got {shown}; {POSSIBLE_OPTIMIZERS}")
    builder = _BUILDERS.get(kind_of(value).lower())
    if builder is None:
        raise ValueError(f"optimizer: {kind_of(value)} has no counterpart here; {POSSIBLE_OPTIMIZERS}")
    config = config_of(value)
    for name, allowed in _OFF.items():
        if config.get(name) not in allowed:
            raise ValueError(f"optimizer: {name}={config[name]!r} of {kind_of(value)} has no counterpart here")
    return builder(value, config)


def _named(name: str) -> Optimizer:
    # Keras's defaults, among them that layer norms and biases decay like everything.
    made: dict[str, Callable[[], Optimizer]] = {
        "adam": lambda: optimizers.AdamW(weight_decay=0.0),
        "adamw": lambda: optimizers.AdamW(exclude_from_weight_decay=()),
        "sgd": optimizers.SGD,
        "adafactor": optimizers.Adafactor,
        "lamb": lambda: optimizers.LAMB(epsilon=1e-7),
    }
    if name.lower() not in made:
        raise ValueError(f"optimizer: got {name!r}; {POSSIBLE_OPTIMIZERS}")
    return made[name.lower()]()


def _rate_of(optimizer: Any, config: Mapping[str, Any]) -> Any:
    """Learning rate: a number, or the optimiser's schedule."""
    rate = getattr(optimizer, "_learning_rate", None)
    if rate is None:
        rate = getattr(optimizer, "_hyper", {}).get("learning_rate", config.get("learning_rate"))
    if callable(rate) and hasattr(rate, "get_config"):
        return Schedule(rate)
    if callable(rate):
        return lambda step: number_of(rate())
    return number_of(rate)


class Schedule:
    """A schedule of Keras as a function from the number of the update to a rate."""

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule

    def __call__(self, step: int) -> float:
        """The rate of update number `step`, from 0."""
        return number_of(self._schedule(step))

    def get_config(self) -> dict[str, Any]:
        """Name and settings, by which a resumed run knows the schedule."""
        return {"name": kind_of(self._schedule), **_plain(config_of(self._schedule))}


def _plain(value: Any) -> Any:
    """Settings that JSON can hold: schedules within schedules by their own settings."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "get_config"):
        return {"name": kind_of(value), **_plain(config_of(value))}
    return number_of(value) if hasattr(value, "numpy") else str(value)


def _undecayed(optimizer: Any) -> tuple[str, ...]:
    """Patterns of the weights that a Keras optimiser leaves out of the decay."""
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise ValueError("optimizer: exclude_from_weight_decay(var_list=...) names variables of Keras; give var_names")
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    if pattern is not None:
        return (str(pattern.pattern),)
    return tuple(getattr(optimizer, "_exclude_from_weight_decay_names", None) or ())


def _adam(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    return optimizers.AdamW(
        _rate_of(optimizer, config),
        config.get("weight_decay") or 0.0,
        config["beta_1"],
        config["beta_2"],
        config["epsilon"],
        global_clipnorm=config.get("global_clipnorm"),
        exclude_from_weight_decay=_undecayed(optimizer),
    )


def _adam_weight_decay(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    if getattr(optimizer, "_include_in_weight_decay", None):
        raise ValueError("optimizer: include_in_weight_decay of AdamWeightDecay has no counterpart here")
    clip = getattr(optimizer, "gradient_clip_norm", 0.0)
    return optimizers.AdamW(
        _rate_of(optimizer, config),
        config["weight_decay_rate"],
        config["beta_1"],
        config["beta_2"],
        config["epsilon"],
        global_clipnorm=clip if clip and clip > 0 else None,
        exclude_from_weight_decay=tuple(getattr(optimizer, "_exclude_from_weight_decay", None) or ()),
    )


def _sgd(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    return optimizers.SGD(
        _rate_of(optimizer, config),
        config["momentum"],
        config["nesterov"],
        config.get("weight_decay") or 0.0,
        global_clipnorm=config.get("global_clipnorm"),
        exclude_from_weight_decay=_undecayed(optimizer),
    )


def _adafactor(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    names = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
    return optimizers.Adafactor(
        _rate_of(optimizer, config),
        **{name: config[name] for name in names},
        weight_decay=config.get("weight_decay") or 0.0,
        global_clipnorm=config.get("global_clipnorm"),
        exclude_from_weight_decay=_undecayed(optimizer),
    )


def _lamb(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    of_the_garden = "weight_decay_rate" in config
    if config.get("weight_decay"):
        raise ValueError(
            "optimizer: Keras's Lamb keeps weight decay out of the trust ratio, which the paper's does not; use "
            "sparse_mixer.optimizers.LAMB(weight_decay_rate=...)"
        )
    names = ("exclude_from_weight_decay", "exclude_from_layer_adaptation")
    patterns = [tuple(getattr(optimizer, name) or ()) if of_the_garden else () for name in names]
    return optimizers.LAMB(
        _rate_of(optimizer, config),
        config["beta_1"],
        config["beta_2"],
        config["epsilon"],
        config.get("weight_decay_rate") or 0.0,
        *patterns,
        global_clipnorm=config.get("global_clipnorm"),
    )


_BUILDERS: dict[str, Callable[[Any, dict[str, Any]], Optimizer]] = {
    "adam": _adam,
    "adamw": _adam,
    "adamweightdecay": _adam_weight_decay,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
}
