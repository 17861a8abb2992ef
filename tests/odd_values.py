"""Arrays and other values that no caller means, and how many of them the stress tests try."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from encoders import LENGTH
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FULL = os.environ.get("SPARSE_MIXER_STRESS", "") == "full"
# Four tests of calls have these settings.
many = settings(
    max_examples=8000 if FULL else 120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

REFUSED = (ValueError, TypeError)


def assert_helps(error: Exception, *names: str) -> None:
    """The message, with its notes, names the argument (or the file) and says what came or what was expected."""
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names), (names, text)
    told = r"\b(expected|got|must|not|no|only|cannot|missing|unknown|unexpected|holds|needs|EOF|invalid)\b"
    assert re.search(told, text), text


def _reversed(array: Any) -> Any:
    return np.ascontiguousarray(array[::-1])[::-1]


def _unaligned(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


def _read_only(array: Any) -> Any:
    array = array.copy()
    array.setflags(write=False)
    return array


# Other forms of the same values.
FORMS: list[Callable[[Any], Any]] = [
    np.asfortranarray,
    _reversed,
    _unaligned,
    _read_only,
    lambda a: a.tolist(),
    lambda a: a.astype(a.dtype.newbyteorder()),
    lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    lambda a: np.broadcast_to(a, a.shape),
    lambda a: a.astype(np.float64),
    lambda a: a.astype(np.int64),
    lambda a: a.astype(np.int16),
    lambda a: a.astype(np.uint8),
    lambda a: a.astype(object),
    lambda a: memoryview(np.ascontiguousarray(a)),
    np.matrix,
]
DTYPES = hnp.scalar_dtypes() | st.sampled_from(["f2", "f4", "f8", "i1", "u8", "i8", "O", "S3", "U2", "V4"]).map(
    np.dtype
)


def odd_arrays() -> st.SearchStrategy[Any]:
    """Arrays of any type, rank 0 to 4 and few elements; and things that are no arrays."""
    arrays = DTYPES.filter(lambda dtype: dtype.kind not in "OV").flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=LENGTH))
    )
    close = st.integers(0, 3).flatmap(
        lambda batch: hnp.arrays(
            st.sampled_from(["i4", "i8", "u8", "f4", "f8", "?"]), (batch, LENGTH), elements=st.integers(0, 1)
        )
    )
    large = hnp.arrays(np.int64, (2, LENGTH), elements=st.integers(-(2**63), 2**63 - 1))
    floats = hnp.arrays(np.float32, (2, LENGTH), elements=st.floats(width=32))
    return arrays | close | large | floats | odd_values()


def odd_values() -> st.SearchStrategy[Any]:
    """Scalars, texts and containers."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.integers(-2, 40),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.complex_numbers(),
        st.lists(st.integers(-2, 60), max_size=4),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        st.sampled_from(
            [object(), int, np.nan, np.float32(1), np.int8(3), np.array(3), ..., slice(None), range(3), "float32"]
        ),
    )
