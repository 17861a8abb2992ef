"""Reading JSON that ought to hold a mapping."""

from __future__ import annotations

import json
from typing import Any

from sparse_mixer._core.checks import short


def mapping_of(content: str | bytes, where: str, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """The mapping that `content` is.

    Args:
        content: JSON.
        where: What messages begin with: the file and the place in it.
        error: What is raised.

    Raises:
        ValueError: Or `error`: no JSON, nested too deeply, or something other than a mapping.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as reason:
        raise error(f"{where}: not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, got {short(value)}")
    return value
