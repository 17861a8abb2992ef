"""Texts of all requests in common passes through the encoder, bounded by tokens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer.serve.metrics import Metrics
from sparse_mixer.text.encoder import TextEncoder
from sparse_mixer.text.tokens import Tokens

Floats = npt.NDArray[np.float32]

# Positions up to which texts are alike: a pass of its own would take longer than the padding.
_SHORT = 16


class Result(NamedTuple):
    """Vectors [N, D] of a request, and the seconds that it waited and that the encoder worked."""

    vectors: Floats
    waited: float
    worked: float


class _Request:
    """Texts that belong together, until all have their vectors."""

    def __init__(self, count: int, unit: bool, dim: int, future: asyncio.Future[Result]) -> None:
        self.settings, self.future = (unit, dim), future
        self.vectors = np.empty((count, dim), np.float32)
        self.left = count
        self.begin = time.perf_counter()
        self.started: float | None = None
        self.dropped = False


class _Text(NamedTuple):
    request: _Request
    place: int
    tokens: Tokens
    positions: int


class Batcher:
    """A thread that encodes what waits, first come, first served.

    Texts of a batch are encoded with the same settings; a text has the same vector, to the bit, in any batch.
    """

    def __init__(self, model: TextEncoder, max_batch_tokens: int, metrics: Metrics) -> None:
        """Start the thread.

        Args:
            model: What encodes.
            max_batch_tokens: Tokens of a batch; a text that has more is a batch of its own.
            metrics: Told of batches and of what waits.
        """
        self._model, self._most, self._metrics = model, max_batch_tokens, metrics
        self._queue: deque[_Text] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sparse_mixer batches", daemon=True)
        self._thread.start()

    async def encode(self, tokens: Sequence[Tokens], unit: bool, dim: int) -> Result:
        """The vectors of texts; whoever stops waiting takes them out of the queue.

        Args:
            tokens: N texts, at least one.
            unit: Whether vectors are divided by their lengths.
            dim: How many numbers of each are kept.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        request = _Request(len(tokens), unit, dim, future)
        texts = [_Text(request, place, one, self._model.positions(one)) for place, one in enumerate(tokens)]
        with self._changed:
            self._queue.extend(texts)
            self._metrics.gauge("te_queue_size", len(self._queue))
            self._changed.notify()
        try:
            return await future
        finally:
            request.dropped = True

    def close(self) -> None:
        """Encode what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            now = time.perf_counter()
            for text in batch:
                text.request.started = text.request.started or now
            self._metrics.observe("te_batch_next_size", len(batch))
            self._metrics.observe("te_batch_next_tokens", sum(text.positions for text in batch))
            for texts in _alike(batch):
                self._encode(texts)

    def _encode(self, texts: list[_Text]) -> None:
        """Encode texts in one pass, and tell the requests that have all their vectors."""
        unit, dim = texts[0].request.settings
        try:
            vectors = self._model.encode_tokens(
                [text.tokens for text in texts],
                len(texts),
                normalize_embeddings=unit,
                truncate_dim=dim,
            )
        except Exception as error:  # that of one batch, which must not end the thread
            for text in texts:
                self._fail(text.request, error)
            return
        for text, vector in zip(texts, vectors, strict=True):
            text.request.vectors[text.place] = vector
            text.request.left -= 1
            if not text.request.left:
                self._finish(text.request)

    def _next(self) -> list[_Text]:
        """The texts of the next batch; none if the queue is closed and empty."""
        with self._changed:
            while True:
                batch = self._first()
                self._metrics.gauge("te_queue_size", len(self._queue))
                if batch or (self._closed and not self._queue):
                    return batch
                self._changed.wait()

    def _first(self) -> list[_Text]:
        """Take the first texts with common settings from the queue; those that nobody waits for are left out."""
        batch: list[_Text] = []
        others: list[_Text] = []
        positions = 0
        while self._queue:
            text = self._queue.popleft()
            if text.request.dropped:
                continue
            if batch and text.request.settings != batch[0].request.settings:
                others.append(text)
                continue
            if batch and positions + text.positions > self._most:
                others.append(text)
                break
            batch.append(text)
            positions += text.positions
        self._queue.extendleft(reversed(others))
        return batch

    @staticmethod
    def _finish(request: _Request) -> None:
        now = time.perf_counter()
        started = now if request.started is None else request.started
        result = Result(request.vectors, started - request.begin, now - started)

        def tell() -> None:
            if not request.future.done():
                request.future.set_result(result)

        _on_loop(request.future, tell)

    @staticmethod
    def _fail(request: _Request, error: Exception) -> None:
        request.dropped = True

        def tell() -> None:
            if not request.future.done():
                request.future.set_exception(error)

        _on_loop(request.future, tell)


def _alike(batch: list[_Text]) -> Iterator[list[_Text]]:
    """The texts of a batch by length, so that no pass is padded to more than twice the length of a text."""
    texts = sorted(batch, key=lambda text: text.positions)
    begin = 0
    for place, text in enumerate(texts):
        if text.positions > max(2 * texts[begin].positions, _SHORT):
            yield texts[begin:place]
            begin = place
    yield texts[begin:]


def _on_loop(future: asyncio.Future[Result], tell: Callable[[], None]) -> None:
    """Call `tell` where the future lives, unless nobody is there any more."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        future.get_loop().call_soon_threadsafe(tell)
