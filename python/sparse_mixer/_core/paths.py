"""Names of files as users give them."""

from __future__ import annotations

import os

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def file_name(path: PathLike, argument: str = "path") -> str:
    """`path` as a string.

    Raises:
        TypeError: It is no path; `argument` is named.
    """
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{argument}: expected str, bytes or os.PathLike, got {type(path).__name__}") from None
