"""Checks of single arguments, which name the argument, what was got and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

DTYPES = ("float32", "bfloat16", "float16", "int8")
_POLICIES = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def as_int(argument: str, value: Any) -> int:
    """An integer of any type that has one, bool excepted.

    Raises:
        TypeError: Not an integer.
    """
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{argument}: expected an integer, got {short(value)} ({type(value).__name__})")


def as_float(argument: str, value: Any) -> float:
    """A finite number.

    Raises:
        TypeError: Not a number.
        ValueError: Not finite.
    """
    if isinstance(value, bool | np.bool_ | str | bytes) or getattr(value, "shape", ()) != ():
        raise TypeError(f"{argument}: expected a number, got {short(value)} ({type(value).__name__})")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {short(value)} ({type(value).__name__})") from None
    except OverflowError:
        raise ValueError(f"{argument}: expected a finite number, got an integer above 1e308") from None
    if not math.isfinite(number):
        raise ValueError(f"{argument}: expected a finite number, got {number}")
    return number


def as_text(argument: str, value: Any) -> str:
    """A string.

    Raises:
        TypeError: Anything else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a string, got {short(value)} ({type(value).__name__})")
    return value


def as_mapping(argument: str, value: Any) -> Mapping[str, Any]:
    """A dict or another mapping.

    Raises:
        TypeError: Anything else.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{argument}: expected a dict, got {short(value)} ({type(value).__name__})")
    return value


def as_callable(argument: str, value: Any) -> Any:
    """Something that can be called.

    Raises:
        TypeError: Anything else.
    """
    if not callable(value):
        raise TypeError(f"{argument}: expected a function, got {short(value)} ({type(value).__name__})")
    return value


def as_list(argument: str, value: Any, of: str) -> list[Any]:
    """The entries of a list. A string, which would pass for a list of its characters, is none.

    Args:
        argument: Name used in error messages.
        value: Any iterable.
        of: What the entries are, for messages.

    Raises:
        TypeError: A string, bytes, a mapping, or nothing that has entries.
    """
    if isinstance(value, str | bytes | bytearray):
        kind = "a string" if isinstance(value, str) else type(value).__name__
        raise TypeError(f"{argument}: expected a list of {of}, got {kind}; pass a list, such as [{short(value)}]")
    single = isinstance(value, Mapping) or getattr(value, "shape", None) == ()
    if single or not isinstance(value, Iterable):
        raise TypeError(f"{argument}: expected a list of {of}, got {type(value).__name__}")
    return list(value)


def as_strings(argument: str, value: Any, of: str) -> list[str]:
    """The strings of a list.

    Raises:
        TypeError: No list, as in `as_list`, or an entry that is no string.
    """
    entries = as_list(argument, value, of)
    for position, entry in enumerate(entries):
        if not isinstance(entry, str):
            kind = type(entry).__name__
            raise TypeError(f"{argument}[{position}]: expected a string, got {short(entry)} ({kind})")
    return entries


def short(value: Any) -> str:
    """`repr` of a value, cut to the length that a message has room for."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


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


def as_int64(argument: str, value: Any) -> int:
    """An integer of 64 bits.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    number = as_int(argument, value)
    if -(2**63) <= number < 2**63:
        return number
    raise ValueError(f"{argument}: got {number}, expected an integer of 64 bits")


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
    raise TypeError(f"{argument}: expected True or False, got {short(value)} ({type(value).__name__})")


def as_layers(argument: str, value: Any) -> tuple[int, ...]:
    """Indices of layers, from any iterable of integers.

    Raises:
        TypeError: Something else.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{argument}: expected a sequence of layer indices, got {value!r} ({type(value).__name__})")
    entries = sorted(value) if isinstance(value, set | frozenset) else value
    return tuple(as_int(f"{argument}[{position}]", entry) for position, entry in enumerate(entries))


def one_of(names: Sequence[str]) -> Callable[[str, Any], str]:
    """A check that lets `names` pass."""

    def check(argument: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{argument}: expected a string, got {value!r} ({type(value).__name__})")
        if value not in names:
            raise ValueError(f"{argument}: got {value!r}, expected one of {', '.join(map(repr, names))}")
        return value

    return check


def as_embedding_layer(argument: str, value: Any) -> Callable[[Any], Any]:
    """A callable.

    Raises:
        TypeError: Something else.
    """
    if callable(value):
        return value  # type: ignore[no-any-return]
    raise TypeError(f"{argument}: expected a callable from ids to embeddings, got {type(value).__name__}")


def or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """A check that lets None pass, besides what `check` does."""
    return lambda argument, value: None if value is None else check(argument, value)
