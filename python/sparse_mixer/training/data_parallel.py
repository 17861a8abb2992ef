"""One run of training on several processes, with the same bits for any number of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_mixer import _native
from sparse_mixer._core.checks import as_list, as_positive
from sparse_mixer._core.paths import PathLike
from sparse_mixer._core.seeds import Purpose, derived_seed
from sparse_mixer.distributed.communicator import Communicator
from sparse_mixer.distributed.equality import expect_equal, weights_digest
from sparse_mixer.distributed.exchange import GradientExchange
from sparse_mixer.distributed.records import Interrupted, Record, Records
from sparse_mixer.distributed.signals import STATUS, Signals
from sparse_mixer.gradients import Gradients
from sparse_mixer.training import state as state_files
from sparse_mixer.training.batches import Batches, token_count
from sparse_mixer.training.history import History
from sparse_mixer.training.metrics import Metrics
from sparse_mixer.training.trainable import Trainable
from sparse_mixer.training.trainer import Trainer

CHECK_EVERY = 100
"""Updates after which the weights of all ranks are compared."""


@dataclass(frozen=True)
class Chunk:
    """The batches of one update.

    Attributes:
        first: Number of the first one of this rank in the update.
        batches: Those of this rank.
        counts: How many each rank has.
        divisors: What the loss of all of them together is divided by.
        tokens: Tokens of all of them.
    """

    first: int
    batches: list[Any]
    counts: list[int]
    divisors: dict[str, float]
    tokens: int

    def __len__(self) -> int:
        return sum(self.counts)


class DataParallelTrainer(Trainer):
    """A `Trainer` on several ranks, which all make the same updates.

    An update is made of `accumulation_steps` batches, numbered through; rank `r` of `n` computes number
    ``r * accumulation_steps / n`` and those that follow. What a batch gives (its gradient, from a buffer of zeros; its
    seeds) depends on its number alone, and all gradients are added in the order of a balanced tree over these numbers.
    So the bits do not depend on how many ranks there are, if each has a power of two of the batches.
    """

    def __init__(
        self,
        model: Trainable,
        data: Any,
        *,
        communicator: Communicator,
        accumulation_steps: int = 1,
        callbacks: Sequence[Any] = (),
        **arguments: Any,
    ) -> None:
        """See `fit` for the arguments."""
        if not isinstance(communicator, Communicator):
            raise TypeError(
                "communicator: expected sparse_mixer.distributed.MPI, Torch or an object with the same attributes, got "
                f"{type(communicator).__name__}"
            )
        self._records = Records(communicator)
        self._signals = Signals(communicator)
        self.rank, self.size = communicator.rank, communicator.size
        with self._together():
            batches = as_positive("accumulation_steps", accumulation_steps)
            if batches % self.size:
                raise ValueError(
                    f"accumulation_steps: got {batches} batches per update of all ranks together, expected a multiple "
                    f"of the {self.size} ranks"
                )
            self._own_steps = batches // self.size
            self._is_cut = callable(data)
            chosen = as_list("callbacks", callbacks, "callbacks")
            super().__init__(
                model,
                self._own_data(data) if self._is_cut else data,
                accumulation_steps=batches,
                callbacks=[
                    callback for callback in chosen if not self.rank or getattr(callback, "on_every_rank", True)
                ],
                **arguments,
            )
            # One process alone adds them one after the other.
            self._settings["sum of batches"] = "tree"
            self._agree(communicator)
            self._exchange = GradientExchange(self._records, model.encoder.num_threads)
        self._partial: list[Gradients] = []
        # What has failed where the others already wait for gradients.
        self._failure: Exception | None = None

    def _own_data(self, data: Callable[[int, int, int], Any]) -> Callable[[int], Any]:
        return lambda epoch: data(epoch, self.rank, self.size)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Tell the other ranks of an error in this block: they exchange records as long as they are in theirs."""
        self._records.begin()
        try:
            yield
        except Interrupted:
            raise
        except BaseException as error:
            self._records.tell(error)
            raise

    def _agree(self, communicator: Communicator) -> None:
        """Refuse ranks that would not compute the same, and take over the seed of rank 0 if none is given."""
        parts = self.model.parts
        described = {
            "version of sparse_mixer": _native.__version__,
            "version of numpy": np.__version__,
            "instruction set": self.model.encoder.isa,
            **self._fingerprint(),
            "seed": self._seed if self._is_seeded else None,
            "weights": [[key, list(shape)] for part in parts for key, shape in part.core.weight_specs()],
            "updates": self.optimizer.iterations,
            "wire_dtype": communicator.wire_dtype,
            "bucket_bytes": communicator.bucket_bytes,
        }
        records = self._records.exchange({"settings": described, "seed": self._seed})
        expect_equal([record["settings"] for record in records])
        self._seed = self._settings["seed"] = records[0]["seed"]

    def run(self) -> History:
        """As `Trainer.run`, on all ranks.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGUSR1 to one of the ranks: all are as after the same update, and the state
                is saved.
            RankError: Another rank has failed.
            FloatingPointError: A loss of one of the ranks is NaN or infinite; nothing has been updated with it.
        """
        with self._together(), self._signals.noticed():
            self._share_weights()
            return super().run()

    def _share_weights(self) -> None:
        """Give all ranks the weights of rank 0, and compare weights and moments."""
        for variable in self._own_variables():
            values = variable.numpy()
            before = values.copy() if self.rank else values
            self._records.broadcast(values)
            if self.rank and not np.array_equal(before, values):
                variable.assign(values)
        self._compare_weights(moments=True)

    def _compare_weights(self, moments: bool = False) -> None:
        """Refuse to go on with ranks that have other weights.

        Raises:
            RuntimeError: One has.
        """
        digest = weights_digest(self._own_variables(), self.optimizer.get_state()[1] if moments else {})
        digests = [record["digest"] for record in self._records.exchange({"digest": digest})]
        others = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            what = "weights or moments" if moments else "weights"
            raise RuntimeError(f"after {self.step} updates, {what} of the ranks {others} are not those of rank 0")

    def _is_stopped(self) -> bool:
        state = {"stop": self.stop, "finished": self._finished, "signal": self._signals.came}
        records = self._records.exchange(state)
        self.stop = any(record["stop"] for record in records)
        self._finished = any(record["finished"] for record in records)
        if any(record["signal"] for record in records):
            if self._state_path is not None:
                self.save(self._state_path)
            raise Interrupted(STATUS)
        return self.stop

    def _start(self) -> int:
        if not self._is_cut:
            return super()._start()
        return (self.step - self._updates_before_epoch + self.skipped_steps) * self._own_steps

    def _next(self, batches: Iterator[Any], wanted: int) -> Chunk:
        first = min(self.rank * self._own_steps, wanted)
        last = min(first + self._own_steps, wanted)
        seen, own = 0, []
        if self._is_cut:
            own = list(itertools.islice(batches, last - first))
        else:
            for batch in itertools.islice(batches, wanted):
                if first <= seen < last:
                    own.append(batch)
                seen += 1
        own = [self._transformed(first + place, batch) for place, batch in enumerate(own)]
        records = self._records.exchange(
            {
                "seen": seen,
                "divisors": [self.model.loss_divisors(batch) for batch in own],
                "tokens": sum(token_count(batch) for batch in own),
            }
        )
        numbers = [record["seen"] for record in records]
        if len(set(numbers)) > 1:
            raise ValueError(
                f"data: the ranks have {numbers} batches left for this update; give all of them the same data, or a "
                "function of epoch, rank and number of ranks"
            )
        divisors: dict[str, float] = {}
        for record in records:
            for of_batch in record["divisors"]:
                for name, value in of_batch.items():
                    divisors[name] = divisors.get(name, 0.0) + value
        counts = [len(record["divisors"]) for record in records]
        return Chunk(first, own, counts, divisors, sum(record["tokens"] for record in records))

    def _begin_step(self) -> None:
        try:
            super()._begin_step()
        except Exception as error:
            self._failure = error

    def _update(self, chunk: Chunk) -> None:
        start = time.perf_counter()
        if not chunk.divisors["weight"]:
            if self._failure is not None:
                raise self._failure
            self._skip(len(chunk))
            return
        own = self._differentiate(chunk)
        record = {"metrics": own, "reached": [_as_text(buffer.reached()) for buffer in self._gradients.buffers]}
        records = self._records.exchange(record)
        for part, buffer in enumerate(self._gradients.buffers):
            buffer.reach([any(flags) for flags in zip(*(_as_flags(r["reached"][part]) for r in records), strict=True)])
        self._apply(_added([one for record in records for one in record["metrics"]]), len(chunk), chunk.tokens, start)
        if self.step % CHECK_EVERY == 0:
            self._compare_weights()

    def _differentiate(self, chunk: Chunk) -> list[Metrics]:
        """Make the sum of all ranks' gradients, and return the metrics of this rank's batches."""
        metrics: list[Metrics] = []
        partial: list[Gradients] = []
        free = list(self._partial)
        present, has_begun = [count > 0 for count in chunk.counts], False
        failure, self._failure = self._failure, None
        self._gradients.clear()
        try:
            if failure is not None:
                raise failure
            for place, batch in enumerate(chunk.batches):
                is_last = place + 1 == len(chunk.batches)
                into = self._gradients if is_last else self._buffer(free)
                if is_last:
                    has_begun = True
                    self._exchange.begin(into, partial, present)
                metrics.append(self._of_batch(chunk, place, batch, into))
                if not is_last:
                    _push(partial, free, into, place)
        except Exception as error:
            failure = error
        # The others wait for this rank's part, whatever it is.
        if not has_begun:
            self._exchange.begin(self._gradients, [], present)
        self._exchange.end(self._gradients)
        if failure is not None:
            # They hold anything.
            self._gradients, self._partial = Gradients(self.model), []
            raise failure
        return metrics

    def _of_batch(self, chunk: Chunk, place: int, batch: Any, into: Gradients) -> Metrics:
        seed = derived_seed(Purpose.BATCH, self._seed, self.step, chunk.first + place)
        try:
            metrics, _ = self.model.loss_and_gradients(
                batch, seed=seed, into=into, recompute=self._recompute, divisors=chunk.divisors
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"update {self.step + 1} was not made: {error}") from None
        return metrics

    def _buffer(self, free: list[Gradients]) -> Gradients:
        """Zeros to add a batch's gradients to."""
        if not free:
            self._partial.append(Gradients(self.model))
            return self._partial[-1]
        buffer = free.pop()
        buffer.clear()
        return buffer

    def _validate(self, batches: Batches) -> dict[str, float]:
        """Every rank evaluates some of the batches; metrics are added in the order of these."""
        all_batches = itertools.islice(batches.epoch(0, 0, seed=0), self._validation_steps)
        own = [self.model.test_step(batch) for batch in itertools.islice(all_batches, self.rank, None, self.size)]
        found = [record["metrics"] for record in self._records.exchange({"metrics": own})]
        count = sum(len(metrics) for metrics in found)
        return _added([found[number % self.size][number // self.size] for number in range(count)]).means()

    def save(self, path: PathLike) -> None:
        """As `Trainer.save`, by rank 0. All ranks have to call it, and wait until the file is there."""
        if not self.rank:
            super().save(path)
        self._records.exchange({})

    def has_state(self, path: str) -> bool:
        """Whether rank 0 finds a file there."""
        with self._together():
            records = self._records.exchange({"found": not self.rank and Path(path).exists()})
        return bool(records[0]["found"])

    def restore(self, path: PathLike) -> None:
        """As `Trainer.restore`; rank 0 reads the file, the others need not see it."""
        with self._together():
            super().restore(path)

    def _read_state(self, path: str) -> state_files.State:
        header: Record = {}
        arrays: dict[str, Any] = {}
        if not self.rank:
            meta, arrays = state_files.load(Path(path))
            header = {"meta": meta, "arrays": [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()]}
        # Whether there is something to send.
        self._records.exchange({})
        header = json.loads(self._records.broadcast_bytes(json.dumps(header).encode()))
        shared = {}
        for name, dtype, shape in header["arrays"]:
            values = np.ascontiguousarray(arrays[name]) if not self.rank else np.empty(shape, np.dtype(dtype))
            self._records.broadcast(values)
            shared[name] = values.reshape(shape)
        return state_files.parse(Path(path), header["meta"], shared)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, rank {self.rank} of {self.size}>"


def _push(partial: list[Gradients], free: list[Gradients], gradients: Gradients, place: int) -> None:
    """Add the gradients of batch `place` to the sums so far, of which each has twice the batches of the next one."""
    carried = place
    while carried & 1:
        left = partial.pop()
        for own, other in zip(left.buffers, gradients.buffers, strict=True):
            own.add(other)
        free.append(gradients)
        gradients, carried = left, carried >> 1
    partial.append(gradients)


def _added(all_metrics: Sequence[Any]) -> Metrics:
    metrics = Metrics()
    for one in all_metrics:
        metrics.add({name: (total, weight) for name, (total, weight) in one.items()})
    return metrics


def _as_text(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _as_flags(text: str) -> list[bool]:
    return [flag == "1" for flag in text]
