"""Ranks for the tests of `sparse_mixer.distributed`: threads of one process, and a run of training that each makes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from encoders import WIDTH, small_encoder
from sparse_mixer import models, optimizers, training
from training_cases import labelled, masking

Array = np.ndarray[Any, Any]


class _Meeting:
    """Where threads exchange what they have."""

    def __init__(self, size: int) -> None:
        self.places: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class Threads:
    """A communicator whose ranks are threads of this process."""

    def __init__(
        self, rank: int, meeting: _Meeting, bucket_bytes: int = 2000, wire_dtype: str = "float32", overlap: bool = True
    ) -> None:
        self.rank, self.size = rank, len(meeting.places)
        self.bucket_bytes, self.wire_dtype, self.overlap = bucket_bytes, wire_dtype, overlap
        self._meeting = meeting
        self.exchanged = 0

    def _meet(self, value: Any, use: Callable[[list[Any]], None]) -> None:
        self._meeting.places[self.rank] = value
        self._meeting.barrier.wait()
        use(self._meeting.places)
        self._meeting.barrier.wait()
        # Memory on lease is not kept.
        self._meeting.places[self.rank] = None

    def alltoall(self, send: Array, lengths: Sequence[int], receive: Array) -> None:
        start, own = sum(lengths[: self.rank]), lengths[self.rank]
        self.exchanged += send.nbytes

        def use(places: list[Array]) -> None:
            receive[:] = np.concatenate([other[start : start + own] for other in places])

        self._meet(send, use)

    def allgather(self, whole: Array, lengths: Sequence[int]) -> None:
        starts = [sum(lengths[:rank]) for rank in range(self.size)]

        def use(places: list[Array]) -> None:
            for other, start, length in zip(places, starts, lengths, strict=True):
                if other is not whole:
                    whole[start : start + length] = other[start : start + length]

        self._meet(whole, use)

    def broadcast(self, array: Array) -> None:
        def use(places: list[Array]) -> None:
            if self.rank:
                array[:] = places[0]

        self._meet(array, use)

    def exchange(self, record: bytes) -> list[bytes]:
        found: list[bytes] = []
        self._meet(record, found.extend)
        return found

    def abort(self, status: int) -> None:
        self._meeting.barrier.abort()


def on_ranks(size: int, work: Callable[[Threads], Any], **options: Any) -> list[Any]:
    """What `work` returns on each of `size` ranks, or what it has raised."""
    meeting = _Meeting(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, meeting, **options))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def pretrainer(dtype: str = "float32", **changes: Any) -> models.BertPretrainerV2:
    """Experts, jitter, dropout, masked language model and a head of classes."""
    encoder = small_encoder(jitter_noise=0.1, dtype=dtype, num_threads=1, **changes)
    head = models.ClassificationHead(WIDTH, 2, dropout_rate=0.1)
    return models.BertPretrainerV2(encoder, "gelu", classification_heads=[head], seed=0)


def texts(examples: int = 43) -> dict[str, Any]:
    inputs, labels = labelled(examples)
    return inputs | {"next_sentence_labels": labels}


def fit(
    communicator: Any,
    model: Any = None,
    data: Any = None,
    *,
    dtype: str = "float32",
    folder: Path | None = None,
    **changes: Any,
) -> training.Trainer:
    """A run in which everything is random. Its last update of an epoch has 3 of 8 batches, the last of 1 example."""
    model = pretrainer(dtype) if model is None else model
    arguments: dict[str, Any] = {
        "optimizer": optimizers.AdamW(1e-2, global_clipnorm=0.5),
        "epochs": 8,
        "batch_size": 4,
        "seed": 5,
        "transform": masking,
        "accumulation_steps": 8,
        "progress": False,
        "state_path": None if folder is None else folder / "state.npz",
    }
    arguments |= changes
    seen = _Seen()
    callbacks = [*arguments.pop("callbacks", ()), seen]
    training.fit(
        model,
        texts() if data is None else data,
        **arguments,
        callbacks=callbacks,
        **({} if communicator is None else {"communicator": communicator}),
    )
    return seen.trainer


class _Seen(training.Callback):
    """Hands out the trainer."""

    trainer: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        self.trainer = trainer


def cut_data(epoch: int, rank: int, size: int) -> Any:
    """The batches of one rank: of every update of 8, those from ``rank * 8 / size`` on."""
    inputs = texts()
    order = np.random.default_rng(epoch).permutation(43)
    own = 8 // size
    for number in range(11):
        if number % 8 // own == rank:
            rows = order[number * 4 : number * 4 + 4]
            yield {name: array[rows] for name, array in inputs.items()}
