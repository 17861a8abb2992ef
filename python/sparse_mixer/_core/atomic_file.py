"""Files that Python writes: they appear whole or not at all, as the core's do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sparse_mixer import _native


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Write a new file for `path`: gives the name of a temporary one in the same folder, to be written in the block.

    Afterwards it is brought to the disk and moved to `path` in one step; a crash leaves the old file or the new one,
    and the next write removes what the crash left. If the block fails, it is removed and `path` stays as it was. The
    permissions of a file that is replaced are kept; a link keeps pointing where it does.
    """
    file = _native.AtomicFile(path)
    try:
        yield file.temporary
        file.commit()
    finally:
        file.discard()
