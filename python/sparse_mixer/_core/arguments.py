"""The constructor's arguments: types checked, foreign objects resolved, and the two forms made of them.

`Arguments.native_config` is what the core is built from, `Arguments.keras_config` what `get_config` returns. Ranges and
combinations are checked by the core, which names the same arguments.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sparse_mixer import activations, initializers
from sparse_mixer._core.checks import as_float as as_float
from sparse_mixer._core.checks import as_int as as_int
from sparse_mixer.activations import Activation
from sparse_mixer.initializers import Initializer, Zeros
from sparse_mixer.layers import MixingMechanism

DEFAULT_MOE_LAYERS = (5, 6, 7, 8)
DEFAULT_ATTENTION_LAYERS = (10, 11, 12, 13)
SEMANTICS = ("keras", "keras_strict", "paper")
ROUTERS = ("experts_choose", "tokens_choose")
ROUTER_DTYPES = ("float32", "bfloat16")
DTYPES = ("float32", "bfloat16", "float16", "int8")
_POLICIES = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}

# TensorFlow's get_config has exactly these keys, in this order.
_KERAS_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "moe_layers",
    "num_experts",
    "train_capacity_factor",
    "eval_capacity_factor",
    "examples_per_group",
    "mixing_mechanism",
    "use_fft",
    "attention_layers",
    "num_attention_heads",
    "max_sequence_length",
    "type_vocab_size",
    "inner_dim",
    "inner_activation",
    "output_dropout",
    "attention_dropout",
    "initializer",
    "output_range",
    "embedding_width",
    "embedding_layer",
    "norm_first",
    "with_dense_inputs",
    "export_metrics",
)
# Our own arguments, in get_config only when they differ from these defaults.
_EXTENSIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_group_size": None,
    "router_z_loss_weight": None,
    "jitter_noise": 0.0,
    "semantics": "keras",
    "pad_id": None,
    "moe_residual": None,
    "project_embeddings": None,
    "shorter_sequences": None,
    "layer_norm_epsilon": 1e-12,
    "with_pooler": True,
    "min_expert_capacity": None,
    "expert_inner_dim": None,
    "expert_dropout": None,
    "router": "experts_choose",
    "num_selected_experts": 1,
    "batch_prioritized_routing": True,
    "auxiliary_loss_factor": 0.01,
    "router_dtype": "float32",
    "group_mixup": False,
    "seed": None,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Checked arguments of one encoder; the names are the constructor's."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    moe_layers: tuple[int, ...]
    attention_layers: tuple[int, ...]
    num_experts: int
    train_capacity_factor: float
    eval_capacity_factor: float
    examples_per_group: float
    mixing_mechanism: MixingMechanism
    use_fft: bool
    num_attention_heads: int
    max_sequence_length: int
    type_vocab_size: int
    inner_dim: int
    inner_activation: dict[str, Any] | Activation
    output_dropout: float
    attention_dropout: float
    initializer: Initializer | Callable[..., Any]
    output_range: int | None
    embedding_width: int | None
    embedding_layer: Callable[[Any], Any] | None
    norm_first: bool
    with_dense_inputs: bool
    export_metrics: bool
    dtype: str
    max_group_size: int | None
    router_z_loss_weight: float | None
    jitter_noise: float
    semantics: str
    pad_id: int | None
    moe_residual: bool | None
    project_embeddings: bool | None
    shorter_sequences: bool | None
    layer_norm_epsilon: float
    with_pooler: bool
    min_expert_capacity: int | None
    expert_inner_dim: int | None
    expert_dropout: float | None
    router: str
    num_selected_experts: int
    batch_prioritized_routing: bool
    auxiliary_loss_factor: float
    router_dtype: str
    group_mixup: bool
    seed: int | None

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> Arguments:
        """Check the type of every argument and resolve names and foreign objects.

        Args:
            given: One value per field of this class.

        Raises:
            TypeError: A value of a wrong type.
            ValueError: An unknown name, or a number that is not finite.
        """
        if given["semantics"] == "paper" and given["initializer"] is initializers.DEFAULT:
            given = {**given, "initializer": initializers.PAPER}
        return cls(**{field.name: _CHECKS[field.name](field.name, given[field.name]) for field in fields(cls)})

    def __post_init__(self) -> None:
        # TensorFlow takes any value; a strict encoder does so, too.
        if self.output_range is not None and self.output_range < 0 and self.semantics != "keras_strict":
            raise ValueError(
                f"output_range: got {self.output_range}, expected 1 to max_sequence_length ({self.max_sequence_length})"
            )

        if self.pad_id is not None and not -1 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id: got {self.pad_id}, expected an id below {self.vocab_size}, or -1 for no padding")

    def padding_id(self) -> int | None:
        """The word id whose positions are padding; None if masks have to be given."""
        return 0 if self.pad_id is None and self.semantics == "paper" else self.pad_id

    def expert_width(self) -> int:
        """Width inside experts."""
        return self.inner_dim if self.expert_inner_dim is None else self.expert_inner_dim

    def width(self) -> int:
        """Width of the word embeddings: `embedding_width`, or `hidden_size` where that is not given."""
        return self.hidden_size if self.embedding_width is None else self.embedding_width

    def native_initializer(self) -> dict[str, Any] | None:
        """The initialiser as the core reads it; None if the weights have to be made in Python."""
        return self.initializer.spec() if isinstance(self.initializer, Initializer) else None

    def layers_within(self, name: str) -> list[int]:
        """The entries of `moe_layers` or `attention_layers` that name an existing layer, ascending."""
        return sorted({layer for layer in getattr(self, name) if 0 <= layer < self.num_layers})

    def warn_about_ignored_layers(self, stacklevel: int) -> None:
        """Warn of explicitly given layer indices that name no layer. The defaults may exceed a small encoder."""
        defaults = {"moe_layers": DEFAULT_MOE_LAYERS, "attention_layers": DEFAULT_ATTENTION_LAYERS}
        for name, default in defaults.items():
            given = getattr(self, name)
            ignored = sorted(set(given) - set(self.layers_within(name)))
            if ignored and given != default:
                warnings.warn(
                    f"{name}: entries {ignored} name no layer and are ignored; "
                    f"with num_layers={self.num_layers} layers are 0 to {self.num_layers - 1}",
                    UserWarning,
                    stacklevel=stacklevel + 1,
                )

    def native_config(self, seed: int) -> str:
        """The core's configuration, as JSON.

        Args:
            seed: The seed of the initial weights.
        """
        own = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("embedding_layer", "export_metrics", "with_dense_inputs")
        }
        own |= {
            # With an embedding layer of the user's the core's table is never read: keep it at one row.
            "vocab_size": self.vocab_size if self.embedding_layer is None else 1,
            "moe_layers": self.layers_within("moe_layers"),
            "attention_layers": self.layers_within("attention_layers"),
            "mixing_mechanism": self.mixing_mechanism.value,
            "inner_activation": {"name": "custom"}
            if isinstance(self.inner_activation, Activation)
            else self.inner_activation,
            # Where the core cannot sample, `_provider` in networks.py hands it every weight.
            "initializer": self.native_initializer() or Zeros().spec(),
            "output_range": None if self.semantics == "keras_strict" else self.output_range,
            "embedding_width": self.width(),
            "seed": seed,
        }
        return json.dumps(own, allow_nan=False)

    def keras_config(self) -> dict[str, Any]:
        """TensorFlow's config keys in its order, then those of our own arguments that differ from their defaults.

        JSON-able unless the activation, the initialiser or the embedding layer is a Python callable.
        """
        config: dict[str, Any] = {name: getattr(self, name) for name in _KERAS_KEYS}
        config |= {
            "moe_layers": list(self.moe_layers),
            "attention_layers": list(self.attention_layers),
            "mixing_mechanism": self.mixing_mechanism.value,
            "inner_activation": activations.serialize(self.inner_activation),
            "initializer": initializers.serialize(self.initializer),
            "embedding_width": self.width(),
        }
        extensions = {name: getattr(self, name) for name in _EXTENSIONS}
        return config | {name: value for name, value in extensions.items() if value != _EXTENSIONS[name]}


def as_dtype(argument: str, value: Any) -> str:
    """One of `DTYPES`, from such a name, a Keras policy (name, object or serialised) or a numpy type.

    Raises:
        ValueError: Not a supported type.
    """
    if value is None:
        return "float32"
    if isinstance(value, Mapping):
        config = value.get("config")
        value = config.get("name") if isinstance(config, Mapping) else None
    name = value if isinstance(value, str) else getattr(value, "name", None)
    if not isinstance(name, str):
        try:
            name = np.dtype(value).name
        except TypeError:
            name = repr(value)
    name = _POLICIES.get(name, name)
    if name not in DTYPES:
        known = ", ".join([*DTYPES, *_POLICIES])
        raise ValueError(f"{argument}: unsupported dtype {name!r}, expected one of {known}")
    return name


def as_positive(argument: str, value: Any) -> int:
    """An integer that is at least 1.

    Raises:
        TypeError: Not an integer.
        ValueError: Less than 1.
    """
    number = as_int(argument, value)
    if number < 1:
        raise ValueError(f"{argument}: expected at least 1, got {number}")
    return number


def _as_unsigned(argument: str, value: Any, limit: int, expected: str) -> int:
    """An integer that is not negative and below `limit`; `expected` says so in the error."""
    number = as_int(argument, value)
    if 0 <= number < limit:
        return number
    raise ValueError(f"{argument}: got {number}, expected {expected}")


def as_step(argument: str, value: Any) -> int:
    """A number of updates: an integer of 63 bits, not negative.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    return _as_unsigned(argument, value, 2**63, "at least 0 and less than 2**63")


def as_count(argument: str, value: Any) -> int:
    """An integer of 63 bits, not negative; what else it must be the core says.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    return _as_unsigned(argument, value, 2**63, "at least 1 and less than 2**63")


def _as_width(argument: str, value: Any) -> int:
    # 0 would mean "not given" to the core; here only None does, as in Keras.
    if as_int(argument, value) == 0:
        raise ValueError(f"{argument}: got 0, expected at least 1, or None for hidden_size")
    return as_count(argument, value)


def as_seed(argument: str, value: Any) -> int:
    """An integer of 64 bits, not negative.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    return _as_unsigned(argument, value, 2**64, f"0 <= {argument} < 2**64")


def as_bool(argument: str, value: Any) -> bool:
    """A truth value: bool, numpy.bool_, an eager TensorFlow boolean, 0 or 1.

    Raises:
        TypeError: Anything else.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = np.asarray(value)
    if array.ndim == 0 and (array.dtype.kind == "b" or (array.dtype.kind in "iu" and array in (0, 1))):
        return bool(array)
    raise TypeError(f"{argument}: expected True or False, got {value!r} ({type(value).__name__})")


def _as_layers(argument: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{argument}: expected a sequence of layer indices, got {value!r} ({type(value).__name__})")
    entries = sorted(value) if isinstance(value, set | frozenset) else value
    return tuple(as_int(f"{argument}[{position}]", entry) for position, entry in enumerate(entries))


def _one_of(names: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check(argument: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{argument}: expected a string, got {value!r} ({type(value).__name__})")
        if value not in names:
            raise ValueError(f"{argument}: got {value!r}, expected one of {', '.join(map(repr, names))}")
        return value

    return check


def _as_layer(argument: str, value: Any) -> Callable[[Any], Any]:
    if callable(value):
        return value  # type: ignore[no-any-return]
    raise TypeError(f"{argument}: expected a callable from ids to embeddings, got {type(value).__name__}")


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda argument, value: None if value is None else check(argument, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_experts",
            "num_attention_heads",
            "max_sequence_length",
            "type_vocab_size",
            "inner_dim",
            "num_selected_experts",
        ),
        as_count,
    ),
    "pad_id": _or_none(as_int),
    "min_expert_capacity": _or_none(as_count),
    "expert_inner_dim": _or_none(as_count),
    "expert_dropout": _or_none(as_float),
    "router_z_loss_weight": _or_none(as_float),
    "moe_residual": _or_none(as_bool),
    "project_embeddings": _or_none(as_bool),
    "shorter_sequences": _or_none(as_bool),
    "router": _one_of(ROUTERS),
    "router_dtype": _one_of(ROUTER_DTYPES),
    "output_range": _or_none(as_int),
    "embedding_width": _or_none(_as_width),
    "max_group_size": _or_none(as_count),
    "seed": _or_none(as_seed),
    **dict.fromkeys(
        (
            "train_capacity_factor",
            "eval_capacity_factor",
            "examples_per_group",
            "output_dropout",
            "attention_dropout",
            "auxiliary_loss_factor",
            "jitter_noise",
            "layer_norm_epsilon",
        ),
        as_float,
    ),
    **dict.fromkeys(
        (
            "use_fft",
            "norm_first",
            "with_dense_inputs",
            "with_pooler",
            "export_metrics",
            "batch_prioritized_routing",
            "group_mixup",
        ),
        as_bool,
    ),
    **dict.fromkeys(("moe_layers", "attention_layers"), _as_layers),
    "mixing_mechanism": lambda argument, value: MixingMechanism.resolve(value, argument),
    "inner_activation": lambda argument, value: activations.resolve(value, argument),
    "initializer": lambda argument, value: initializers.resolve(value, argument),
    "embedding_layer": _or_none(_as_layer),
    "dtype": as_dtype,
    "semantics": _one_of(SEMANTICS),
}
