"""Where the time of a call goes, section by section, in a build with the feature `section-timers`."""

from __future__ import annotations

import dataclasses
import gc
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import peak, report
from benchmarks.workload import Workload

NO_TIMERS = """\
This build of sparse_mixer has no section timers: releases leave them out. Build one that has them, in a folder of its
own, and measure it with

    make profile PROFILE_ARGS="--batch 8"

(`make profile` alone takes the defaults; `python -m benchmarks profile --help` lists the arguments)."""

PRODUCT, OTHER, WAITING = "products", "everything else", "waiting"
"""Kinds of work as the core names them."""
ALONE = "one thread alone, and outside the core"
"""What threads have left beside their sections: others do nothing while one works by itself or is in Python."""
WHOLE_PLACES = ("router", "head")
"""Parts of the model that are one line, whatever the work."""
LEAST_SECONDS = 5e-5
"""Lines of less would be zeros in the table."""
LEAST_SHARE = 0.003
"""Parts of the model with a smaller share of "everything else" have no line of their own."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A kind of work in a part of the model: seconds of all threads added, entries, operations of products."""

    place: str
    work: str
    seconds: float
    calls: int
    operations: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """The quickest of several calls, and the seconds of all of them."""

    sections: list[Section]
    seconds: float
    turns: list[float]


@dataclasses.dataclass
class _Line:
    item: str
    seconds: float = 0.0
    calls: int = 0
    operations: int = 0
    has_rate: bool = False

    def add(self, section: Section) -> None:
        self.seconds += section.seconds
        self.calls += section.calls
        self.operations += section.operations


def take_sections() -> list[Section]:
    """Return what every section has taken since the last time.

    Raises:
        SystemExit: The build has no timers; the text says how to make one.
    """
    from sparse_mixer import _native

    times = _native.take_section_times()
    if times is None:
        raise SystemExit(NO_TIMERS)
    return [Section(*each) for each in times]


def measure(call: Callable[[], object], rounds: int) -> Profile:
    """Call twice to get warm, then `rounds` times; the sections are those of the quickest call."""
    call()
    call()
    profiles = []
    for _ in range(rounds):
        take_sections()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        profiles.append((seconds, take_sections()))
    seconds, sections = min(profiles, key=lambda each: each[0])
    return Profile(sections, seconds, [each[0] for each in profiles])


def lines(sections: Sequence[Section], seconds: float, threads: int) -> list[_Line]:
    """Return the table's lines, products first; together they are `seconds` times `threads`.

    The line "all products" repeats those above it.
    """
    all_seconds = seconds * threads
    by_item: dict[str, _Line] = {}

    def line(item: str) -> _Line:
        return by_item.setdefault(item, _Line(item))

    products = _Line("all products", has_rate=True)
    for section in (s for s in sections if s.work == PRODUCT and s.place not in WHOLE_PLACES):
        line(f"products: {section.place}").has_rate = True
        line(f"products: {section.place}").add(section)
        products.add(section)
    by_item[products.item] = products
    others = [s for s in sections if s.work != PRODUCT or s.place in WHOLE_PLACES]
    for section in others:
        if section.work not in (OTHER, WAITING) and section.place not in WHOLE_PLACES:
            line(section.work).add(section)
    for section in others:
        if section.work != WAITING and section.place in WHOLE_PLACES:
            line(section.place).add(section)
    for section in (s for s in others if s.work == OTHER and s.place not in WHOLE_PLACES):
        is_small = section.seconds < LEAST_SHARE * all_seconds
        line(f"{OTHER}: {'the rest' if is_small else section.place}").add(section)
    for section in (s for s in others if s.work == WAITING):
        line(WAITING).add(section)
    booked = sum(section.seconds for section in sections)
    line(ALONE).seconds = all_seconds - booked
    return list(by_item.values())


def table(profile: Profile, threads: int, rate: float) -> str:
    """Return the table of one profile: thread-milliseconds, shares, and rates of products beside the peak.

    Args:
        profile: what was measured.
        threads: threads of each call.
        rate: measured operations per second of all threads, 0 if unknown.
    """
    all_seconds = profile.seconds * threads
    found = lines(profile.sections, profile.seconds, threads)
    operations = sum(section.operations for section in profile.sections)
    total = _Line("total", all_seconds, sum(s.calls for s in profile.sections), operations, has_rate=True)
    cells = []
    for line in (*(line for line in found if line.seconds >= LEAST_SECONDS), total):
        speed = line.operations * threads / line.seconds if line.has_rate and line.seconds > 0 else None
        cells.append(
            [
                line.item,
                str(line.calls),
                f"{1e3 * line.seconds:.1f}",
                f"{100 * line.seconds / all_seconds:.1f}",
                f"{speed / 1e9:.0f}" if speed is not None else "",
                f"{100 * speed / rate:.0f}" if speed is not None and rate else "",
            ]
        )
    header = ["item", "calls", "thread-ms", "% of total", "GFLOP/s", "% of peak"]
    return report.markdown_table(header, cells)


def _call(workload: Workload, dtype: str, batch: int, threads: int, training: bool) -> Callable[[], object]:
    """Return the call to be measured: an inference or a training step, as the other benchmarks have them."""
    inputs: Any = workload.inputs(batch)
    if training:
        from benchmarks.trainer_ours import Peer as Trainer

        trainer = Trainer(workload, threads, dtype=dtype)
        return lambda: trainer(inputs)
    from benchmarks.peer_ours import Peer

    encoder = Peer(workload, threads, dtype=dtype)
    return lambda: encoder(inputs)


def run(
    dtypes: Sequence[str],
    batch: int,
    threads: int,
    rounds: int,
    training: bool,
    folder: pathlib.Path | None,
    workload: Workload | None = None,
) -> str:
    """Measure and return the printed tables, one per storage type.

    Args:
        dtypes: storage types of the weights.
        batch: sequences per call.
        threads: threads of each call.
        rounds: calls of which the quickest counts.
        training: training steps instead of inference.
        folder: where `profile.json` and `profile.md` (`profile-training` of training steps) go, or None.
        workload: the model; the Base model if None.

    Raises:
        SystemExit: The build has no timers.
    """
    take_sections()
    load = os.getloadavg()[0]
    rates = peak.measure(threads)
    parts, raw = [], []
    for dtype in dtypes:
        call = _call(workload or Workload(), dtype, batch, threads, training)
        profile = measure(call, rounds)
        del call
        gc.collect()
        rate = peak.of_storage_type(rates, dtype)
        what = "training step" if training else "inference"
        times = f"{1e3 * profile.seconds:.0f} ms, median {1e3 * statistics.median(profile.turns):.0f}"
        title = f"{what}, {dtype}, batch {batch}, {threads} threads: quickest of {rounds} calls {times}"
        parts.append(f"{title}; peak {rate / 1e9:.0f} G/s\n\n{table(profile, threads, rate)}")
        raw.append({"dtype": dtype, "peak": rate, **dataclasses.asdict(profile)})
    quiet = "quiet" if load < 0.5 else "NOT QUIET: measure again when nothing else runs"
    parts.append(f"{report.machine()['processor']}; load average before the run {load:.2f} ({quiet})")
    text = "\n\n".join(parts)
    if folder is not None:
        results = {"batch": batch, "threads": threads, "load_average": load, "profiles": raw}
        report.save(folder, "profile-training" if training else "profile", results, text)
    return text
