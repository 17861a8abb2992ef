"""The constructor's arguments: checked, and in the forms that the core, Keras and files take.

The core declares them (``src/config/arguments.rs``): names, types, defaults, ranges, and which are TensorFlow's. It
checks ranges and combinations, too. Here values get their Python types; None stands for "not given".
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sparse_mixer import _native, activations, initializers
from sparse_mixer._core import checks
from sparse_mixer.activations import Activation
from sparse_mixer.initializers import Initializer, Zeros
from sparse_mixer.layers import MixingMechanism

Check = Callable[[str, Any], Any]

_CHECKS: dict[str, Check] = {
    "count": checks.as_count,
    "integer": checks.as_int64,
    "seed": checks.as_seed,
    "number": checks.as_float,
    "flag": checks.as_bool,
    "layers": checks.as_layers,
    "dtype": checks.as_dtype,
    "mixing": lambda argument, value: MixingMechanism.resolve(value, argument),
    "activation": lambda argument, value: activations.resolve(value, argument),
    "initializer": lambda argument, value: initializers.resolve(value, argument),
}


class Argument(NamedTuple):
    """One argument of the constructor."""

    default: Any
    check: Check
    """From a user's value to ours."""
    is_required: bool
    is_keras: bool
    """Whether TensorFlow's class has it."""


# Arguments of TensorFlow's class that the core does not see, each with the one that it comes behind.
_OF_PYTHON: dict[str, tuple[str, Argument]] = {
    "embedding_layer": ("embedding_width", Argument(None, checks.or_none(checks.as_embedding_layer), False, True)),
    "with_dense_inputs": ("norm_first", Argument(False, checks.as_bool, False, True)),
    "export_metrics": ("with_dense_inputs", Argument(True, checks.as_bool, False, True)),
}


@functools.cache  # Not made before the first encoder is: importing is quick.
def declared() -> Mapping[str, Argument]:
    """All arguments by name: TensorFlow's in the order of its configuration, then ours."""
    arguments: dict[str, Argument] = {}
    for name, kind, is_optional, default, _, origin, names in _native.arguments():
        check = checks.one_of(names) if kind == "name" else _CHECKS[kind]
        check = checks.or_none(check) if is_optional else check
        value = check(name, json.loads(default))
        arguments[name] = Argument(value, check, origin == "required", origin != "extension")
        for behind, own in ((other, own) for other, (before, own) in _OF_PYTHON.items() if before in arguments):
            arguments.setdefault(behind, own)
    return arguments


class Arguments:
    """Checked arguments of one encoder, one attribute each; None for "not given"."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, given: Mapping[str, Any]) -> None:
        """Check the type of every argument and resolve names and foreign objects.

        Args:
            given: Values by name; those that are missing have their defaults, other names are passed over.

        Raises:
            TypeError: A value of a wrong type.
            ValueError: An unknown name, a number that is not finite, or a missing argument without a default.
        """
        for name, argument in declared().items():
            if argument.is_required and name not in given:
                raise ValueError(f"config: '{name}' is missing")
            setattr(self, name, argument.check(name, given[name]) if name in given else argument.default)

    def replace(self, **changes: Any) -> Arguments:
        """The same arguments but for `changes`."""
        return Arguments(vars(self) | changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arguments) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Arguments({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def padding_id(self) -> int | None:
        """The word id whose positions are padding; None if masks have to be given."""
        if self.pad_id is None:
            return 0 if self.semantics == "paper" else None
        return int(self.pad_id)

    def expert_width(self) -> int:
        """Width inside experts."""
        return int(self.inner_dim if self.expert_inner_dim is None else self.expert_inner_dim)

    def width(self) -> int:
        """Width of the word embeddings: `embedding_width`, or `hidden_size` where that is not given."""
        return int(self.hidden_size if self.embedding_width is None else self.embedding_width)

    def group_examples(self) -> float:
        """Examples per routing group: `examples_per_group`, or 1 where that is not given."""
        return 1.0 if self.examples_per_group is None else float(self.examples_per_group)

    def core_samples(self) -> bool:
        """Whether the core makes the initial weights; else Python does."""
        own = self.initializer
        return own is None or (isinstance(own, Initializer) and own.spec() is not None)

    def layers_within(self, name: str) -> list[int]:
        """The entries of `moe_layers` or `attention_layers` that name an existing layer, ascending."""
        return sorted({layer for layer in getattr(self, name) if 0 <= layer < self.num_layers})

    def warn_about_ignored_layers(self, stacklevel: int) -> None:
        """Warn of explicitly given layer indices that name no layer. The defaults may exceed a small encoder."""
        for name in ("moe_layers", "attention_layers"):
            given = getattr(self, name)
            ignored = sorted(set(given) - set(self.layers_within(name)))
            if ignored and given != declared()[name].default:
                warnings.warn(
                    f"{name}: entries {ignored} name no layer and are ignored; "
                    f"with num_layers={self.num_layers} layers are 0 to {self.num_layers - 1}",
                    UserWarning,
                    stacklevel=stacklevel + 1,
                )

    def core_config(self, seed: int) -> str:
        """The core's configuration, as JSON.

        Args:
            seed: The seed of the initial weights.
        """
        config = {name: value for name, value in vars(self).items() if name not in _OF_PYTHON}
        config |= {
            "moe_layers": self.layers_within("moe_layers"),
            "attention_layers": self.layers_within("attention_layers"),
            "mixing_mechanism": self.mixing_mechanism.value,
            "inner_activation": {"name": "custom"}
            if isinstance(self.inner_activation, Activation)
            else self.inner_activation,
            "seed": seed,
        }
        if self.initializer is not None:
            # Where the core cannot sample, `construction.provider` hands it every weight.
            config["initializer"] = self.initializer.spec() if self.core_samples() else Zeros().spec()
        if self.embedding_layer is not None:
            # The core's table is never read: one row will do. It does not see the ids, and so not which are padding.
            config |= {"vocab_size": 1, "pad_id": None if self.pad_id is None else -1}
        return json.dumps(config, allow_nan=False)

    def keras_config(self) -> dict[str, Any]:
        """TensorFlow's config keys in its order, then those of our own arguments that differ from their defaults.

        JSON-able unless the activation, the initialiser or the embedding layer is a Python callable. Arguments that are
        not given have TensorFlow's values where these mean the same, and are None elsewhere.
        """
        config = self.exact_config()
        if self.semantics != "paper":
            config["initializer"] = initializers.serialize(self.initializer or initializers.DEFAULT)
            if self.max_group_size is None:
                config["examples_per_group"] = self.group_examples()
        return config | {"embedding_width": self.width()}

    def exact_config(self) -> dict[str, Any]:
        """The same, with None for all that is not given."""
        config = {
            name: getattr(self, name)
            for name, argument in declared().items()
            if argument.is_keras or getattr(self, name) != argument.default
        }
        return config | {
            "moe_layers": list(self.moe_layers),
            "attention_layers": list(self.attention_layers),
            "mixing_mechanism": self.mixing_mechanism.value,
            "inner_activation": activations.serialize(self.inner_activation),
            "initializer": None if self.initializer is None else initializers.serialize(self.initializer),
        }
