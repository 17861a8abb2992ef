"""Whether all ranks are about to compute the same, and have the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mixer._core.checks import short
from sparse_mixer._core.variables import Variable

# Differences that a message has room for.
_MOST = 4


def expect_equal(settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse ranks with other settings than rank 0.

    Args:
        settings: Those of each rank, by name.

    Raises:
        ValueError: There are some; the message is the same on all ranks.
    """
    first = settings[0]
    for rank, other in enumerate(settings):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            told = [f"{name} {short(other.get(name))}, not {short(first.get(name))}" for name in names[:_MOST]]
            more = f"; and {len(names) - _MOST} more differences" if len(names) > _MOST else ""
            raise ValueError(f"communicator: compared with rank 0, rank {rank} has {'; '.join(told)}{more}")


def weights_digest(variables: Sequence[Variable], moments: Mapping[str, Any]) -> str:
    """A digest of all weights and moments, bit by bit."""
    state = hashlib.blake2b(digest_size=16)
    for variable in variables:
        state.update(np.ascontiguousarray(variable.numpy()).data)
    for name in sorted(moments):
        state.update(np.ascontiguousarray(moments[name]).data)
    return state.hexdigest()
