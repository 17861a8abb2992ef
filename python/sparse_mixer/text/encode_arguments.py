"""Checks of what `TextEncoder.encode` is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparse_mixer._core.checks import short
from sparse_mixer.text.tokenizing import is_text_or_pair


def as_texts(inputs: Any) -> list[Any]:
    """A list of texts or pairs of texts.

    Raises:
        TypeError: Something else.
    """
    if isinstance(inputs, Mapping | bytes) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs: expected a text or a list of texts, got {short(inputs)} ({type(inputs).__name__})")
    texts = list(inputs)
    for place, text in enumerate(texts):
        if not is_text_or_pair(text):
            kind = type(text).__name__
            raise TypeError(f"inputs[{place}]: expected a text or a pair of texts, got {short(text)} ({kind})")
    return texts


def refuse(*, convert_to_tensor: Any, device: Any, pool: Any) -> None:
    """Say by name what is another package's business.

    Raises:
        ValueError: One of them is given.
    """
    if convert_to_tensor:
        raise ValueError("convert_to_tensor: got True, but vectors are numpy arrays here; use torch.from_numpy on them")
    if device is not None and str(device) != "cpu":
        raise ValueError(f"device: got {device!r}, expected None or 'cpu': this library computes on CPUs")
    if pool is not None:
        raise ValueError("pool: expected None: num_threads says how many threads share the work, without processes")


def check_out(out: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse an array that results of this shape and type cannot be written to.

    Raises:
        ValueError: Another shape or type, or no array.
    """
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out: expected an array {dtype} {list(shape)}, got {got}")
