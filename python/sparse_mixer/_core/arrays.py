"""Arrays from whatever holds numbers: numpy, nested lists, tables of pandas, tensors of frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# ml_dtypes registers bfloat16 as kind "V"; it converts like any float.
_BFLOAT16 = "bfloat16"


def as_array(argument: str, value: Any, of: str = "numbers") -> npt.NDArray[Any]:
    """A numpy array of `value`, without a copy where that is possible.

    Args:
        argument: Name used in error messages.
        value: An array, (nested) lists of numbers, a table or column of pandas, also with a list in each cell, or a
            tensor that numpy can view or that has ``__dlpack__``.
        of: What is expected, for messages.

    Raises:
        TypeError: Texts, or an object that gives no array.
        ValueError: Rows of different lengths.
    """
    try:
        if not isinstance(value, np.ndarray) and not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
        else:
            array = np.asarray(value)
        if array.dtype.kind == "O":
            # Python's integers, or lists in the cells of a column.
            array = np.array(array.tolist())
    except ValueError as error:
        raise ValueError(f"{argument}: cannot be read as one array: {error}") from None
    except (TypeError, RuntimeError, BufferError) as error:
        raise TypeError(f"{argument}: cannot be read as an array: {error}{_hint(value, error)}") from None
    if array.dtype.kind in "SU":
        raise TypeError(
            f"{argument}: expected {of}, got texts; tokenise them with sparse_mixer.text.encode, or number classes "
            "with numpy.unique(labels, return_inverse=True)"
        )
    return array


def as_float32(argument: str, value: Any) -> npt.NDArray[np.float32]:
    """Convert any real array to float32, without a copy where it already is.

    Raises:
        TypeError: `value` is not a real-valued array; the message names `argument`.
        ValueError: Rows of different lengths.
    """
    array = as_array(argument, value, "a real-valued array")
    if array.dtype.kind not in "fiub" and array.dtype.name != _BFLOAT16:
        raise TypeError(f"{argument}: expected a real-valued array, got dtype {array.dtype}")
    return array.astype(np.float32, copy=False)


def as_integers(argument: str, value: Any, *, booleans: bool = False) -> npt.NDArray[Any]:
    """Integers of any type, or floats without fractions, as int32 or int64.

    Args:
        argument: Name used in error messages.
        value: As in `as_array`.
        booleans: Whether False and True pass for 0 and 1.

    Raises:
        TypeError: Not integers; the message names `argument` and, for fractions, the position.
        ValueError: Rows of different lengths.
    """
    array = as_array(argument, value, "integers")
    if array.dtype.kind == "f" or array.dtype.name == _BFLOAT16:
        _refuse_fractions(argument, array)
        return array.astype(np.int64)
    if not array.size and array.dtype.kind == "O":
        return array.astype(np.int64)
    if array.dtype.kind not in ("iub" if booleans else "iu"):
        raise TypeError(f"{argument}: expected integers, got dtype {array.dtype}")
    if array.dtype == np.uint64:
        # Integers beyond int64 would wrap to negative ones: keep them too large, so that range checks tell the truth.
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))
    return array.astype(np.int32 if np.can_cast(array.dtype, np.int32) else np.int64, copy=False)


def _refuse_fractions(argument: str, array: npt.NDArray[Any]) -> None:
    values = array.astype(np.float64, copy=False)
    # Integers beyond 2^53 are not exact in float64, and no vocabulary is that large.
    wrong = ~(np.abs(values) < 2.0**53) | (np.trunc(values) != values)
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise TypeError(f"{argument}{list(position)}: got {array[position]!s}, expected an integer")


def _hint(value: Any, error: Exception) -> str:
    """What to do about a tensor that gives no array."""
    kind, text = f"{getattr(value, 'dtype', '')}".lower(), f"{error}".lower()
    if "bfloat16" in kind or "bfloat16" in text:
        return "; numpy has no bfloat16: pass tensor.float()"
    if "grad" in text:
        return "; pass tensor.detach()"
    if any(word in text for word in ("cuda", "device", "cpu")):
        return "; pass tensor.cpu()"
    return ""
