"""One process per engine, kept alive and called in turn, so that no engine sees another's threads or memory."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, Self

from benchmarks.peers import ENGINES, Engine, Load


class WorkerError(RuntimeError):
    """An engine failed in its process; the text holds its traceback."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory of a worker process in bytes, now and at its highest since the last reset."""

    resident: int
    peak: int


def _memory() -> Memory:
    """Read the resident size and its high-water mark from the kernel (Linux)."""
    fields = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}
    return Memory(kib["VmRSS"] * 1024, kib["VmHWM"] * 1024)


class _Session:
    """What runs inside the worker process; public methods are the messages it understands."""

    def __init__(self, peer: str, threads: int) -> None:
        self._spec = ENGINES[peer]
        self._threads = threads
        self._workload: Any = None
        self._engine: Engine | None = None

    def build(self, workload: Load, same_weights: bool) -> float:
        """Construct the engine (dropping an earlier one); return the seconds it took, imports included."""
        self._engine = None
        start = time.perf_counter()
        self._workload = workload
        self._engine = self._spec.build(workload, self._threads, same_weights)
        return time.perf_counter() - start

    def call(self, batch: Any, calls: int) -> list[float]:
        """Call the engine `calls` times on the same `batch` sequences, or task; return the seconds of each call."""
        assert self._engine is not None, "build comes first"
        inputs = self._workload.inputs(batch)
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            self._engine(inputs)
            seconds.append(time.perf_counter() - start)
        return seconds

    def answer(self, batch: Any) -> Any:
        """Return what one call does: arrays, or a loss."""
        assert self._engine is not None, "build comes first"
        return self._engine(self._workload.inputs(batch))

    def memory(self) -> Memory:
        """Return the resident memory of this process."""
        return _memory()

    def reset_peak(self) -> None:
        """Let the high-water mark of resident memory start again from now."""
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _serve(connection: Connection, peer: str, threads: int, site: pathlib.Path | None) -> None:
    """Answer messages `(method, arguments)` until `None` comes or the parent is gone."""
    # RAYON: the threads of the package `tokenizers`.
    names = ("OMP_NUM_THREADS", "SPARSE_MIXER_NUM_THREADS", "RAYON_NUM_THREADS")
    os.environ.update(dict.fromkeys(names, str(threads)))
    if site is not None:
        sys.path.insert(0, str(site.resolve()))
    session = _Session(peer, threads)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message is None:
            return
        method, arguments = message
        try:
            connection.send((True, getattr(session, method)(*arguments)))
        except Exception:
            connection.send((False, traceback.format_exc()))


class Worker:
    """Handle of one engine's process. Use as a context manager; methods block until the engine has answered."""

    def __init__(self, peer: str, threads: int, name: str = "", site: pathlib.Path | None = None) -> None:
        """Start the process; nothing is imported in it yet.

        Args:
            peer: a key of `benchmarks.peers.ENGINES`.
            threads: number of compute threads that the engine may use.
            name: what results call the worker, if not by its peer.
            site: folder of packages that come before the installed ones.
        """
        self.name = name or peer
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, peer, threads, site))
        self._process.start()
        theirs.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._connection.send((method, arguments))
        try:
            good, answer = self._connection.recv()
        except EOFError as error:
            self._process.join()
            raise WorkerError(f"{self.name}: process ended with code {self._process.exitcode}") from error
        if not good:
            raise WorkerError(f"{self.name}:\n{answer}")
        return answer

    def build(self, workload: Load, same_weights: bool = True) -> float:
        """See `_Session.build`; without `same_weights` the engine draws its own, which takes less memory."""
        return float(self._ask("build", workload, same_weights))

    def call(self, batch: Any, calls: int = 1) -> list[float]:
        """See `_Session.call`."""
        return list(self._ask("call", batch, calls))

    def answer(self, batch: Any) -> Any:
        """See `_Session.answer`."""
        return self._ask("answer", batch)

    def memory(self) -> Memory:
        """See `_Session.memory`."""
        memory: Memory = self._ask("memory")
        return memory

    def reset_peak(self) -> None:
        """See `_Session.reset_peak`."""
        self._ask("reset_peak")

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join()

    def __enter__(self) -> Self:
        """Return the worker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()
