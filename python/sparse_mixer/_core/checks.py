"""Checks of single arguments, which name the argument, what was got and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


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
    except TypeError:
        raise TypeError(f"{argument}: expected a number, got {short(value)} ({type(value).__name__})") from None
    except OverflowError:
        raise ValueError(f"{argument}: expected a finite number, got an integer above 1e308") from None
    if not math.isfinite(number):
        raise ValueError(f"{argument}: expected a finite number, got {number}")
    return number


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
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
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
