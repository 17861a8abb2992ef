"""Progress of long calls: tqdm's bar where it is installed, else lines on the standard error output."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# Seconds between two lines.
_PAUSE = 1.0


@contextlib.contextmanager
def progress(total: int, shows: bool) -> Iterator[Callable[[int], None]]:
    """A function that is told how many more of `total` texts are done.

    Args:
        total: How many there are.
        shows: Whether anything is to be shown.
    """
    if not shows:
        yield lambda count: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield _lines(total)
        return
    with tqdm(total=total, unit="text") as bar:
        yield bar.update


def _lines(total: int) -> Callable[[int], None]:
    done, begin = 0, time.monotonic()
    last = begin

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _PAUSE or done >= total:
            last = now
            left = (now - begin) / done * (total - done)
            sys.stderr.write(f"{done} of {total} texts, about {left:.0f} s left\n")

    return advance
