"""Weight initialisers, under Keras's names and with its formulas.

`initializer` fills every table and kernel; biases and betas start at 0, gammas at 1. It may be given as

* a Keras name (``"truncated_normal"``, ``"GlorotUniform"``, ...),
* an object of this module, or a Keras initialiser (recognised by its class name, without importing Keras),
* the dict that Keras serialises an initialiser to,
* any callable from a shape to an array.

The numbers come from the `seed` of the encoder or of the head, one independent stream per weight. (In Keras a seeded
initialiser gives all weights of equal shape the same values; here its seed only replaces one that was not given.)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.checks import as_float, as_int

_FRAMEWORKS = frozenset({"keras", "tensorflow", "tf_keras"})


@dataclass(frozen=True)
class Initializer:
    """Base of this module's initialisers: a name, and parameters with Keras's names and defaults."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float":
                as_float(field.name, value)
            elif field.name == "seed" and value is not None:
                as_int(field.name, value)

    def spec(self) -> dict[str, Any] | None:
        """The initialiser as the core reads it, ``{"name": ..., <parameters>}``; None if `sample` does it."""
        return None

    def sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float32]:
        """One weight's initial values, for the initialisers that the core does not know.

        Args:
            shape: Shape of the weight.
            generator: Source of randomness of this weight alone.
        """
        raise NotImplementedError(f"{type(self).__name__} is sampled by the core")

    def get_config(self) -> dict[str, Any]:
        """The parameters, under Keras's names."""
        return asdict(self)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal distribution cut at two standard deviations, not rescaled.

    Attributes:
        mean: Centre of the distribution.
        stddev: Standard deviation before cutting; what remains has about 0.88 of it.
        seed: Used when the encoder or head has no seed of its own.
    """

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return {"name": "truncated_normal", "mean": float(self.mean), "stddev": float(self.stddev)}


@dataclass(frozen=True)
class RandomNormal(Initializer):
    """Normal distribution with `mean` and `stddev`."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return {"name": "normal", "mean": float(self.mean), "stddev": float(self.stddev)}


@dataclass(frozen=True)
class RandomUniform(Initializer):
    """Uniform distribution on ``[minval, maxval)``."""

    minval: float = -0.05
    maxval: float = 0.05
    seed: int | None = None

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return {"name": "uniform", "minval": float(self.minval), "maxval": float(self.maxval)}


@dataclass(frozen=True)
class Zeros(Initializer):
    """All zeros."""

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return Constant(0.0).spec()


@dataclass(frozen=True)
class Ones(Initializer):
    """All ones."""

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return Constant(1.0).spec()


@dataclass(frozen=True)
class Constant(Initializer):
    """All elements equal to `value`."""

    value: float = 0.0

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return {"name": "constant", "value": float(self.value)}


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Orthonormal rows or columns of the weight seen as a matrix ``[all axes but the last, last]``, times `gain`."""

    gain: float = 1.0
    seed: int | None = None

    def sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float32]:
        """See `Initializer.sample`."""
        columns = shape[-1]
        rows = int(np.prod(shape[:-1]))
        normal = generator.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(normal)
        q *= np.sign(np.diag(r))  # Makes the distribution uniform over orthogonal matrices.
        values = self.gain * (q if rows >= columns else q.T)
        return values.reshape(shape).astype(np.float32)


@dataclass(frozen=True)
class Identity(Initializer):
    """`gain` times the identity matrix; only for encoders whose weights are all matrices (no attention, no MoE)."""

    gain: float = 1.0

    def sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float32]:
        """See `Initializer.sample`."""
        if len(shape) != 2:
            raise ValueError(f"initializer: Identity needs a weight with 2 axes, got shape {shape}")
        return np.eye(*shape, dtype=np.float32) * np.float32(self.gain)


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Zero-mean distribution whose variance is ``scale / n``, with n from the weight's fans.

    The fans follow Keras: the last two axes, each times the product of all axes before them.

    Attributes:
        scale: Positive factor of the variance.
        mode: What n is: ``"fan_in"``, ``"fan_out"`` or ``"fan_avg"``.
        distribution: ``"truncated_normal"`` (rescaled to keep the variance), ``"untruncated_normal"`` or ``"uniform"``.
        seed: Used when the encoder or head has no seed of its own.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale: expected a positive number, got {self.scale!r}")
        _one_of("mode", self.mode.lower(), ("fan_in", "fan_out", "fan_avg"))
        _one_of(
            "distribution",
            self.distribution.lower(),
            ("normal", "truncated_normal", "untruncated_normal", "uniform"),
        )

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        distribution = self.distribution.lower()
        return {
            "name": "variance_scaling",
            "scale": float(self.scale),
            "mode": self.mode.lower(),
            # Keras's older name "normal" has always meant the truncated form.
            "distribution": "truncated_normal" if distribution == "normal" else distribution,
        }


@dataclass(frozen=True)
class _NamedScaling(Initializer):
    """A `VarianceScaling` that Keras knows by an author's name."""

    seed: int | None = None
    _scale: ClassVar[float]
    _mode: ClassVar[str]
    _distribution: ClassVar[str]

    def spec(self) -> dict[str, Any]:
        """See `Initializer.spec`."""
        return VarianceScaling(self._scale, self._mode, self._distribution).spec()


@dataclass(frozen=True)
class GlorotUniform(_NamedScaling):
    """Uniform with variance ``2 / (fan_in + fan_out)``."""

    _scale, _mode, _distribution = 1.0, "fan_avg", "uniform"


@dataclass(frozen=True)
class GlorotNormal(_NamedScaling):
    """Truncated normal with variance ``2 / (fan_in + fan_out)``."""

    _scale, _mode, _distribution = 1.0, "fan_avg", "truncated_normal"


@dataclass(frozen=True)
class HeUniform(_NamedScaling):
    """Uniform with variance ``2 / fan_in``."""

    _scale, _mode, _distribution = 2.0, "fan_in", "uniform"


@dataclass(frozen=True)
class HeNormal(_NamedScaling):
    """Truncated normal with variance ``2 / fan_in``."""

    _scale, _mode, _distribution = 2.0, "fan_in", "truncated_normal"


@dataclass(frozen=True)
class LecunUniform(_NamedScaling):
    """Uniform with variance ``1 / fan_in``."""

    _scale, _mode, _distribution = 1.0, "fan_in", "uniform"


@dataclass(frozen=True)
class LecunNormal(_NamedScaling):
    """Truncated normal with variance ``1 / fan_in``."""

    _scale, _mode, _distribution = 1.0, "fan_in", "truncated_normal"


DEFAULT = TruncatedNormal(stddev=0.02)

_CLASSES: dict[str, type[Initializer]] = {
    cls.__name__: cls
    for cls in (
        Constant,
        GlorotNormal,
        GlorotUniform,
        HeNormal,
        HeUniform,
        Identity,
        LecunNormal,
        LecunUniform,
        Ones,
        Orthogonal,
        RandomNormal,
        RandomUniform,
        TruncatedNormal,
        VarianceScaling,
        Zeros,
    )
}
_NAMES: dict[str, str] = {
    "constant": "Constant",
    "glorot_normal": "GlorotNormal",
    "glorot_uniform": "GlorotUniform",
    "he_normal": "HeNormal",
    "he_uniform": "HeUniform",
    "identity": "Identity",
    "lecun_normal": "LecunNormal",
    "lecun_uniform": "LecunUniform",
    "normal": "RandomNormal",
    "one": "Ones",
    "ones": "Ones",
    "orthogonal": "Orthogonal",
    "random_normal": "RandomNormal",
    "random_uniform": "RandomUniform",
    "truncated_normal": "TruncatedNormal",
    "uniform": "RandomUniform",
    "variance_scaling": "VarianceScaling",
    "zero": "Zeros",
    "zeros": "Zeros",
}


def resolve(identifier: Any, argument: str = "initializer") -> Initializer | Callable[..., Any]:
    """Find out which initialiser `identifier` stands for.

    Args:
        identifier: Any of the forms listed in this module's documentation.
        argument: Name used in error messages.

    Returns:
        An `Initializer`, or the callable itself when it is none that this module knows.

    Raises:
        ValueError: The name or the serialised form is unknown, or a parameter has an impossible value.
        TypeError: `identifier` is neither a name, a dict nor a callable, or a parameter does not exist.
    """
    if isinstance(identifier, Initializer):
        return identifier
    if isinstance(identifier, str):
        return _class_named(identifier, argument)()
    if isinstance(identifier, Mapping):
        class_name, config = identifier.get("class_name"), identifier.get("config", {})
        if not isinstance(class_name, str) or not isinstance(config, Mapping):
            raise ValueError(f"{argument}: cannot read the initialiser {dict(identifier)!r}")
        return _build(_class_named(class_name, argument), config, argument)
    if isinstance(identifier, type) and issubclass(identifier, Initializer):
        return identifier()
    kind = type(identifier)
    known = _CLASSES.get(kind.__name__)
    if known is not None and kind.__module__.split(".")[0] in _FRAMEWORKS:
        return _build(known, identifier.get_config(), argument)
    if callable(identifier):
        return identifier  # type: ignore[no-any-return]
    raise TypeError(
        f"{argument}: expected a name, an initialiser, a dict or a callable of a shape, got {kind.__name__}"
    )


def serialize(initializer: Initializer | Callable[..., Any]) -> Any:
    """The form of a resolved initialiser that `get_config` returns.

    Keras's serialised dict for an `Initializer`. Callables come back as they are: they have no JSON form.
    """
    if not isinstance(initializer, Initializer):
        return initializer
    return {
        "module": "keras.initializers",
        "class_name": type(initializer).__name__,
        "config": initializer.get_config(),
        "registered_name": None,
    }


def _class_named(name: str, argument: str) -> type[Initializer]:
    cls = _CLASSES.get(_NAMES.get(name, name))
    if cls is not None:
        return cls
    close = difflib.get_close_matches(name, [*_NAMES, *_CLASSES], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{argument}: unknown initialiser {name!r}{hint} Known names: {', '.join(sorted(_NAMES))}")


def _build(cls: type[Initializer], config: Mapping[str, Any], argument: str) -> Initializer:
    # Keras 3 writes axes that Keras 2 does not know; both compute the fans from the last two axes.
    parameters = {key: value for key, value in config.items() if value is not None}
    try:
        return cls(**parameters)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {cls.__name__}: {error}") from None


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}: expected one of {', '.join(allowed)}, got {value!r}")
