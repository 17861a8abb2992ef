"""How far a long command is: a line that is written over on a terminal, a new one now and then elsewhere."""

from __future__ import annotations

import sys
import time

# Seconds between two lines on a terminal, and elsewhere.
_PAUSES = (0.5, 10.0)


class ProgressLine:
    """Shows rows, their share, how fast it goes and how long it will take, on the standard error output."""

    def __init__(self, name: str, shows: bool) -> None:
        """Begin a file of this name."""
        self._name, self._shows = name, shows
        self._terminal = sys.stderr.isatty()
        self._begin = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, rows: int, fraction: float) -> None:
        """So many rows are done, which are this share of all; what the first call tells was partly there before."""
        now = time.monotonic()
        if self._first is None:
            # The rate is known from here on.
            self._first, self._begin = (rows, fraction), now
        if self._shows and now - self._last >= _PAUSES[0 if self._terminal else 1]:
            self._last = now
            sys.stderr.write(f"\r{self._text(rows, fraction, now)}\033[K" if self._terminal else
                             f"{self._text(rows, fraction, now)}\n")  # fmt: skip
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._shows and self._terminal:
            sys.stderr.write("\r\033[K")

    def _text(self, rows: int, fraction: float, now: float) -> str:
        text = f"{self._name}: {rows:,} rows, {fraction:.0%}"
        first_rows, first_fraction = self._first or (0, 0.0)
        seconds, gained = now - self._begin, fraction - first_fraction
        if seconds > 0 and gained > 0:
            left = seconds * (1 - fraction) / gained
            text += f", {(rows - first_rows) / seconds:,.0f} rows/s, about {duration(left)} left"
        return text


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
