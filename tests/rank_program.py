"""What the tests start on each rank: ``python rank_program.py mpi|torch FOLDER TASK``, in a launcher of such programs.

Writes what came out to ``FOLDER/<rank>.json``, as far as the task comes to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from encoders import small_encoder
from ranks import cut_data, fit
from sparse_mixer import distributed, models, optimizers, training
from training_cases import digest, labelled


class At(training.Callback):
    """Does something on one rank after an update."""

    def __init__(self, step: int, rank: int, action: Any) -> None:
        self.step, self.rank, self.action = step, rank, action

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        if trainer.step == self.step and trainer.rank == self.rank:
            self.action()


class Slow(training.Callback):
    """Leaves the tests time between updates, and says that training goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        if trainer.step == 2:
            (self.folder / f"started-{trainer.rank}").touch()
        time.sleep(0.02)


def classifier(communicator: Any) -> training.Trainer:
    model = models.BertClassifier(small_encoder(num_threads=1), 2, seed=0)
    inputs, labels = labelled(37)
    weights = np.linspace(0.1, 2.0, 37, dtype=np.float32)
    data = (inputs, labels, weights)
    return fit(communicator, model, data, optimizer=optimizers.LAMB(1e-2), epochs=2, transform=None)


def bits(communicator: Any, folder: Path) -> Any:
    """Experts, dropout, clipping, masked words, a ragged last batch, a rank without batches; bfloat16."""
    runs = {
        "pretrainer": fit(communicator),
        "bfloat16": fit(communicator, dtype="bfloat16", epochs=2),
        "data of ranks": fit(communicator, data=cut_data, batch_size=None, epochs=2),
        "classifier": classifier(communicator),
    }
    assert runs["pretrainer"].step == 16
    return {name: digest(run) for name, run in runs.items()}


def killed(communicator: Any, folder: Path) -> Any:
    """The last rank is gone in the middle of the run."""
    kill = At(5, communicator.size - 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return digest(fit(communicator, folder=folder, save_every=1, callbacks=[kill], epochs=4))


def resumed(communicator: Any, folder: Path) -> Any:
    return digest(fit(communicator, folder=folder, save_every=1, epochs=4))


def endless(communicator: Any, folder: Path) -> Any:
    """Until a signal comes."""
    try:
        fit(communicator, folder=folder, callbacks=[Slow(folder)], epochs=100_000)
    except distributed.Interrupted as end:
        (folder / f"{communicator.rank}.json").write_text(json.dumps(end.code))
        raise


def other_seed(communicator: Any, folder: Path) -> Any:
    fit(communicator, seed=communicator.rank, folder=folder)


def fails(communicator: Any, folder: Path) -> Any:
    """An error before training, which the other ranks wait for."""
    if communicator.rank:
        raise RuntimeError("no such disk")
    fit(communicator)


def main() -> None:
    kind, folder, task = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    communicator: Any = (distributed.MPI if kind == "mpi" else distributed.Torch)(bucket_bytes=4000)
    result = {name.__name__: name for name in (bits, killed, resumed, endless, other_seed, fails)}[task](
        communicator, folder
    )
    (folder / f"{communicator.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
