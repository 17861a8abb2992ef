"""Objects of Keras, told by their class and their configuration: nothing here imports Keras.

Known are those of ``tf_keras`` (also its ``legacy`` optimisers), of Keras 3 and of the Model Garden. What has no
counterpart here is refused with a message that says what there is.
"""

from __future__ import annotations

import sys
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
    "gradient_accumulation_steps": (None, 1),
}
_INSTEAD: Mapping[str, str] = {
    "clipnorm": "; global_clipnorm clips the gradients of all weights together",
    "gradient_accumulation_steps": "; give fit(accumulation_steps=...)",
}
# Settings that change no number by themselves.
_WITHOUT_EFFECT = frozenset({"name", "dtype", "jit_compile", "is_legacy_optimizer", "ema_momentum"})
# Members of a subclass that only say how it is made.
_MAKING = frozenset({"__init__", "get_config", "from_config"})


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


def described(argument: str, value: Any, possible: str = "") -> tuple[str, dict[str, Any] | None] | None:
    """The name of the framework's class and the settings, of an object or of what ``serialize`` makes of one.

    Args:
        argument: Name in messages.
        value: Anything.
        possible: What messages say there is.

    Returns:
        None if `value` is neither. Settings are None if the object cannot tell them.

    Raises:
        ValueError: An object with code of its own, which would not run here.
    """
    if isinstance(value, Mapping) and isinstance(value.get("class_name"), str):
        module = value.get("module")
        if value.get("registered_name") is not None and str(module).split(".")[0] not in _FRAMEWORKS:
            raise ValueError(f"{argument}: {value['class_name']} is not a class of Keras; {possible}")
        return value["class_name"], dict(value.get("config") or {})
    if isinstance(value, type) or not is_foreign(value) or not hasattr(value, "get_config"):
        return None
    own = _own_code(type(value))
    if own:
        raise ValueError(
            f"{argument}: {type(value).__name__}, which inherits from {kind_of(value)}, has code of its own "
            f"({', '.join(own)}) that nothing here would call; {possible}"
        )
    try:
        return kind_of(value), config_of(value)
    except NotImplementedError:
        return kind_of(value), None


def refuse_others(argument: str, kind: str, config: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse settings that nothing here heeds.

    Args:
        argument: Name in messages.
        kind: Name of the class.
        config: Its settings.
        known: Those that are heeded with no values, others with the values that they may have.

    Raises:
        ValueError: A setting with another value, or one that is not known.
    """
    for name, value in config.items():
        if name in _WITHOUT_EFFECT:
            continue
        allowed = known.get(name, (None, False))
        if allowed and not any(value is other or value == other for other in allowed):
            hint = _INSTEAD.get(name, "")
            raise ValueError(f"{argument}: {name}={value!r} of {kind} has no counterpart here{hint}")


def _own_code(kind: type) -> list[str]:
    """Names of the methods and properties that subclasses of a framework's class define."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in _FRAMEWORKS:
            break
        members = vars(base).items()
        names |= {name for name, member in members if callable(member) or hasattr(member, "__get__")}
    return sorted(names - _MAKING - {"__dict__", "__weakref__"})


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
    found = described("optimizer", value, POSSIBLE_OPTIMIZERS)
    if found is None:
        shown = value.__name__ if isinstance(value, type) else type(value).__name__
        raise TypeError(f"optimizer: got {shown}; {POSSIBLE_OPTIMIZERS}")
    kind, config = found
    builder = _BUILDERS.get(kind.lower())
    if builder is None:
        raise ValueError(f"optimizer: {kind} has no counterpart here; {POSSIBLE_OPTIMIZERS}")
    known: dict[str, tuple[Any, ...]] = {**_OFF, **dict.fromkeys(_SETTINGS[kind.lower()], ())}
    if config is None:
        # A schedule that cannot tell its settings keeps the optimiser from telling its own.
        config = {name: _setting(value, name) for name in known if hasattr(value, name) and name != "learning_rate"}
    # How often averages are written back, which are not kept at all.
    refuse_others("optimizer", kind, config, {**known, "ema_overwrite_frequency": ()})
    # What a config leaves out is as Keras has it.
    config.setdefault("learning_rate", 0.01 if kind.lower() == "sgd" else 0.001)
    return builder(None if isinstance(value, Mapping) else value, config)


def _setting(optimizer: Any, name: str) -> Any:
    value = getattr(optimizer, name)
    return number_of(value) if hasattr(value, "numpy") else value


def _named(name: str) -> Optimizer:
    # Keras's defaults, among them that layer norms and biases decay like everything.
    made: dict[str, Callable[[], Optimizer]] = {
        "adam": lambda: optimizers.AdamW(weight_decay=0.0, exclude_from_weight_decay=()),
        "adamw": lambda: optimizers.AdamW(exclude_from_weight_decay=()),
        "sgd": optimizers.SGD,
        "adafactor": optimizers.Adafactor,
        "lamb": lambda: optimizers.LAMB(epsilon=1e-7, exclude_from_weight_decay=()),
    }
    if name.lower() not in made:
        raise ValueError(f"optimizer: got {name!r}; {POSSIBLE_OPTIMIZERS}")
    return made[name.lower()]()


def _rate_of(optimizer: Any, config: Mapping[str, Any]) -> Any:
    """Learning rate: a number, or the optimiser's schedule."""
    rate = getattr(optimizer, "_learning_rate", None)
    if rate is None:
        rate = getattr(optimizer, "_hyper", {}).get("learning_rate", config.get("learning_rate"))
    if isinstance(rate, Mapping):
        return Schedule(_made_schedule(rate))
    if callable(rate) and hasattr(rate, "get_config"):
        return Schedule(rate)
    if callable(rate):
        return lambda step: number_of(rate())
    return number_of(rate)


def _made_schedule(serialized: Mapping[str, Any]) -> Any:
    """A schedule from what ``serialize`` makes of one, by the Keras that has been imported."""
    for name in ("tf_keras", "keras"):
        framework: Any = sys.modules.get(name)
        if framework is not None:
            return framework.optimizers.schedules.deserialize(dict(serialized))
    raise ValueError("optimizer: the config's learning_rate is a schedule, and no Keras is imported that could make it")


class Schedule:
    """A schedule of Keras as a function from the number of the update to a rate."""

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule

    def __call__(self, step: int) -> float:
        """The rate of update number `step`, from 0."""
        return number_of(self._schedule(step))

    def get_config(self) -> dict[str, Any]:
        """Name and settings, by which a resumed run knows the schedule."""
        try:
            settings = config_of(self._schedule)
        except NotImplementedError:
            settings = {
                name: value
                for name, value in vars(self._schedule).items()
                if value is None or isinstance(value, bool | int | float | str) or hasattr(value, "numpy")
            }
        return {"name": type(self._schedule).__name__, **_plain(settings)}


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
    return np.asarray(value.numpy()).tolist() if hasattr(value, "numpy") else str(value)


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
        config.get("beta_1", 0.9),
        config.get("beta_2", 0.999),
        config.get("epsilon", 1e-7),
        global_clipnorm=config.get("global_clipnorm"),
        exclude_from_weight_decay=_undecayed(optimizer),
    )


def _adamw(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    return _adam(optimizer, {"weight_decay": 0.004, **config})


def _adam_weight_decay(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    if getattr(optimizer, "_include_in_weight_decay", None):
        raise ValueError("optimizer: include_in_weight_decay of AdamWeightDecay has no counterpart here")
    clip = getattr(optimizer, "gradient_clip_norm", 0.0)
    return optimizers.AdamW(
        _rate_of(optimizer, config),
        config.get("weight_decay_rate", 0.0),
        config.get("beta_1", 0.9),
        config.get("beta_2", 0.999),
        config.get("epsilon", 1e-7),
        global_clipnorm=clip if clip and clip > 0 else None,
        exclude_from_weight_decay=tuple(getattr(optimizer, "_exclude_from_weight_decay", None) or ()),
    )


def _sgd(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    return optimizers.SGD(
        _rate_of(optimizer, config),
        config.get("momentum", 0.0),
        config.get("nesterov", False),
        config.get("weight_decay") or 0.0,
        global_clipnorm=config.get("global_clipnorm"),
        exclude_from_weight_decay=_undecayed(optimizer),
    )


def _adafactor(optimizer: Any, config: dict[str, Any]) -> Optimizer:
    names = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
    return optimizers.Adafactor(
        _rate_of(optimizer, config),
        **{name: config[name] for name in names if name in config},
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
        config.get("beta_1", 0.9),
        config.get("beta_2", 0.999),
        config.get("epsilon", 1e-6 if of_the_garden else 1e-7),
        config.get("weight_decay_rate") or 0.0,
        *patterns,
        global_clipnorm=config.get("global_clipnorm"),
    )


_BUILDERS: dict[str, Callable[[Any, dict[str, Any]], Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adamweightdecay": _adam_weight_decay,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
}

_MOMENTS = ("beta_1", "beta_2", "epsilon")
_COMMON = ("learning_rate", "weight_decay", "global_clipnorm")
# What the builders read.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "adam": (*_COMMON, *_MOMENTS),
    "adamw": (*_COMMON, *_MOMENTS),
    "adamweightdecay": ("learning_rate", "weight_decay_rate", *_MOMENTS),
    "sgd": (*_COMMON, "momentum", "nesterov"),
    "adafactor": (*_COMMON, "beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step"),
    "lamb": (*_COMMON, "weight_decay_rate", *_MOMENTS),
}
