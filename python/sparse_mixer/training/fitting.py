"""`fit`: a run of training from its arguments."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from sparse_mixer._core.checks import as_bool, as_list
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.optimizers import Optimizer
from sparse_mixer.training.callbacks import Callback, ProgressBar
from sparse_mixer.training.history import History
from sparse_mixer.training.state import REMEDY
from sparse_mixer.training.trainable import Trainable
from sparse_mixer.training.trainer import Trainer

if TYPE_CHECKING:
    from sparse_mixer.distributed.communicator import Communicator


def fit(
    model: Trainable,
    data: Any,
    *,
    optimizer: Optimizer,
    epochs: int = 1,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    shuffle: bool | None = None,
    drop_remainder: bool | None = None,
    seed: int | None = None,
    transform: Callable[[Any, int], Any] | None = None,
    accumulation_steps: int = 1,
    recompute: bool = False,
    validation_data: Any = None,
    callbacks: Sequence[Callback] = (),
    state_path: PathLike | None = None,
    save_every: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
    initial_epoch: int = 0,
    validation_batch_size: int | None = None,
    validation_steps: int | None = None,
    validation_freq: int | Collection[int] = 1,
    communicator: Communicator | None = None,
) -> History:
    """Train a model.

    Args:
        model: One of `sparse_mixer.models`.
        data: Arrays (a dict, ``(inputs, labels)`` or ``(inputs, labels, sample_weight)``), or an iterable of batches of
            the same forms that starts again every epoch, or a function from the epoch's number to one. With
            `steps_per_epoch`, epochs of an iterable start where the one before ended, and an iterator will do: a
            resumption reads past the batches that have been used.
        optimizer: One of `sparse_mixer.optimizers`.
        epochs: Passes over the data.
        batch_size: Examples per batch, when `data` are arrays; 32 unless given.
        steps_per_epoch: End an epoch after so many batches.
        shuffle: Whether each epoch of arrays has an order of its own, as it has unless this is False.
        drop_remainder: Leave out a smaller last batch of arrays.
        seed: Source of order, dropout and jitter, together with the optimiser's `iterations`: a second run with the
            same optimiser continues and does not repeat the first. None takes a random one (see
            `sparse_mixer.set_random_seed`), or that of the run that is resumed.
        transform: Called as ``transform(batch, seed)`` on every batch, with a seed of its own: for masking.
        accumulation_steps: Batches per update. Together they count as one large batch: each of them as much as its
            examples, labelled tokens or predictions.
        recompute: Compute blocks again in the backward pass: less memory, more time, the same bits.
        validation_data: What `evaluate` is given after each epoch, with the same `batch_size`.
        callbacks: See `sparse_mixer.training.callbacks`.
        state_path: Where the state is saved: after every epoch, every `save_every` updates, and on Ctrl-C. A state
            of a run with another model, optimiser, schedule, data or labels is refused; that of the same run, if it
            is finished, gives that run's result and a warning.
        save_every: Updates between saves, besides those.
        resume: Resume from `state_path` if the file is there.
        progress: Show a progress bar; None shows one if tqdm is installed.
        initial_epoch: Number of the first epoch; `epochs` is that of the last one.
        validation_batch_size: The `batch_size` of `evaluate`; None for that of training.
        validation_steps: Batches of `validation_data` to evaluate; None for all.
        validation_freq: Evaluate after every so many epochs, or after those with these numbers, from 1.
        communicator: The processes (ranks) that train the model together, see `sparse_mixer.distributed`; all of them
            call `fit` with the same arguments. `accumulation_steps` then counts the batches of all ranks, each of which
            computes as many of them. All get the same `data` and take their own batches from these; or a function of
            epoch, rank and number of ranks gives each its own, in order. Callbacks are called on every rank with the
            same logs, those that write or print on rank 0 alone, which also writes the state; another number of ranks
            may resume it.

    Batches in which no label has a weight make no update; ``skipped_steps`` in an epoch's logs counts them.

    Returns:
        The history.

    Raises:
        KeyboardInterrupt: Interrupted: the model is as after the last update, and the state saved. With a communicator
            `sparse_mixer.distributed.Interrupted`, on all ranks, after a signal to one of them.
        FloatingPointError: A loss is NaN or infinite.
        ValueError: An argument that cannot work, or that has no meaning for such `data`; a state of another run; ranks
            that would not compute the same.
        sparse_mixer.distributed.RankError: Another rank has failed.
    """
    bar = []
    if progress is not False and (communicator is None or not communicator.rank):
        try:
            bar = [ProgressBar()]
        except ImportError:
            if progress:
                raise
    kind: Callable[..., Trainer] = Trainer
    if communicator is not None:
        # Only then: few programs need it.
        from sparse_mixer.training.data_parallel import DataParallelTrainer

        kind = functools.partial(DataParallelTrainer, communicator=communicator)
    trainer = kind(
        model,
        data,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        drop_remainder=drop_remainder,
        seed=seed,
        transform=transform,
        accumulation_steps=accumulation_steps,
        recompute=recompute,
        validation_data=validation_data,
        callbacks=[*as_list("callbacks", callbacks, "callbacks"), *bar],
        state_path=state_path,
        save_every=save_every,
        initial_epoch=initial_epoch,
        validation_batch_size=validation_batch_size,
        validation_steps=validation_steps,
        validation_freq=validation_freq,
    )
    name = None if state_path is None else file_name(state_path, "state_path")
    if as_bool("resume", resume) and name is not None and trainer.has_state(name):
        trainer.restore(name)
        if trainer.finished:
            warnings.warn(
                f"{name}: this run is finished after {trainer.epoch} epochs: nothing is trained, its result is "
                f"returned; {REMEDY}, or ask for more epochs",
                UserWarning,
                stacklevel=2,
            )
    return trainer.run()
