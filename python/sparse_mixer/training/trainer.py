"""One run of training."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparse_mixer._core import interrupts
from sparse_mixer._core.checks import as_callable, as_int, as_list, as_positive, as_seed, as_step
from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer._core.seeds import Purpose, derived_seed, fresh_seed
from sparse_mixer._core.variables import Variable
from sparse_mixer.gradients import Gradients
from sparse_mixer.optimizers import Optimizer
from sparse_mixer.training import fingerprint
from sparse_mixer.training.batches import Batches, are_arrays, as_batches, read_batch, token_count
from sparse_mixer.training.callbacks import Callback
from sparse_mixer.training.history import History
from sparse_mixer.training.metrics import Metrics
from sparse_mixer.training.resume import Resumable
from sparse_mixer.training.trainable import Trainable


class Trainer(Resumable):
    """One run of training: `run` continues from where it is, until the last epoch is over.

    Attributes:
        model: What is trained.
        optimizer: What trains it.
        epochs: Number of epochs of the run.
        epoch: Number of the epoch, from 0.
        batch: Batches of this epoch that have been used for updates.
        batches_done: The same over all epochs.
        epoch_metrics: Sums over the epoch so far.
        history: Epochs and steps so far.
        skipped_steps: Steps of this epoch that made no update, because no label in them had a weight.
        tokens_per_second: Moving average, without padding.
        stop: Set it to leave `run` after the step or epoch; `run` or a resumption continues from there.
        rank: Number of this process among those that train the model together; 0 for one process.
    """

    rank = 0

    def __init__(
        self,
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
        initial_epoch: int = 0,
        validation_batch_size: int | None = None,
        validation_steps: int | None = None,
        validation_freq: int | Collection[int] = 1,
    ) -> None:
        """See `fit` for the arguments."""
        self.model: Trainable = _expect("model", model, Trainable)
        self.optimizer: Optimizer = _expect("optimizer", optimizer, Optimizer)
        listed = as_list("callbacks", callbacks, "callbacks")
        self._callbacks = [_expect("callbacks", callback, Callback) for callback in listed]
        # Without a seed of its own, a resumption takes over that of the run.
        self._is_seeded = seed is not None
        self._seed = fresh_seed() if seed is None else as_seed("seed", seed)
        pairs = self._labels_are_pairs = getattr(model, "_labels_are_pairs", False)
        first = as_step("initial_epoch", initial_epoch)
        self.batches = as_batches(
            data, batch_size, shuffle, drop_remainder, steps_per_epoch, pairs=pairs, first_epoch=first
        )
        self.epochs = as_int("epochs", epochs)
        if self.epochs < 0:
            raise ValueError(f"epochs: expected at least 0, got {epochs}")
        self.epoch = first
        self.batch = self.batches_done = self.skipped_steps = 0
        # Updates that the optimiser had made when the epoch began: with the seed, they decide its order.
        self._updates_before_epoch = 0
        self.epoch_metrics = Metrics()
        self.history = History()
        self.tokens_per_second = 0.0
        self.stop = False
        self._finished = self._warned_of_skipping = False
        # What a resumption must have in common with the run that was saved.
        self._settings = {
            "seed": self._seed,
            "examples": self.batches.examples,
            **self.batches.settings,
            "batches per epoch": self.batches.steps,
            "accumulation_steps": as_positive("accumulation_steps", accumulation_steps),
            "transform": fingerprint.of_function(transform),
            **fingerprint.of_optimizer(optimizer),
            **fingerprint.of_model(model),
        }
        self._digests: dict[str, Any] | None = None
        self._transform = None if transform is None else as_callable("transform", transform)
        self._accumulation_steps = accumulation_steps
        self._recompute = recompute
        self._validation = None
        if validation_data is not None:
            size = batch_size if validation_batch_size is None else validation_batch_size
            size = size if are_arrays(validation_data) else None
            # In their own order, as in `evaluate`: what else is in a batch changes how experts are shared out.
            shuffle = False if are_arrays(validation_data) else None
            self._validation = as_batches(validation_data, size, shuffle, argument="validation_data", pairs=pairs)
        self._validation_steps = None if validation_steps is None else as_positive("validation_steps", validation_steps)
        self._validation_freq = (
            {as_positive("validation_freq", epoch) for epoch in validation_freq}
            if isinstance(validation_freq, Collection)
            else as_positive("validation_freq", validation_freq)
        )
        self._state_path = None if state_path is None else Path(file_name(state_path, "state_path"))
        self._save_every = None if save_every is None else as_positive("save_every", save_every)
        if save_every is not None and state_path is None:
            raise ValueError("save_every: needs state_path")
        self._gradients = Gradients(model)

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self.optimizer.iterations

    @property
    def validates(self) -> bool:
        """Whether the model is evaluated after each epoch."""
        return self._validation is not None

    @property
    def finished(self) -> bool:
        """Whether training is over for good, and `run` trains no further."""
        return self._finished or self.epoch >= self.epochs

    def finish(self) -> None:
        """End the run after the step or epoch, for good: a resumption trains no further.

        An epoch that is ended after a step is evaluated and entered into the history as it is, as in Keras.
        """
        self.stop = self._finished = True

    def run(self) -> History:
        """Train until the run is finished or `stop` is set.

        Raises:
            KeyboardInterrupt: Interrupted, with model, optimiser and counters as after the last update; the state is
                saved if the run has a path for it. `run` may be called again.
            FloatingPointError: A loss is NaN or infinite; nothing has been updated with it.
        """
        if not any(isinstance(variable, Variable) for variable in self.model.trainable_weights):
            raise ValueError("model: there is nothing to train, all of its weights are frozen")
        _warn_of_untrained(self.model.encoder)
        self.stop = False
        begun = []
        try:
            for callback in self._callbacks:
                callback.on_train_begin(self)
                begun.append(callback)
            while not (self._is_stopped() or self.finished):
                self._run_epoch()
            # At the end of an epoch it has been done.
            if self.stop and self.batch and self._state_path is not None:
                self.save(self._state_path)
        except KeyboardInterrupt:
            if self._state_path is not None:
                self.save(self._state_path)
            raise
        finally:
            for callback in begun:
                callback.on_train_end(self)
        return self.history

    def _run_epoch(self) -> None:
        if not self.batch:
            self._updates_before_epoch = self.step
        order = derived_seed(Purpose.ORDER, self._seed, self._updates_before_epoch)
        batches = self.batches.epoch(self.epoch, self._start(), order)
        for callback in self._callbacks:
            callback.on_epoch_begin(self)
        while not self._is_stopped():
            wanted = self._accumulation_steps
            if self.batches.steps is not None:
                wanted = min(wanted, self.batches.steps - self.batch)
            chunk = self._next(batches, wanted)
            if not len(chunk):
                break
            self._begin_step()
            self._update(chunk)
            if self._save_every and self.step % self._save_every == 0 and self._state_path is not None:
                self.save(self._state_path)
        else:
            # An epoch that a callback ended for good is over, too.
            if not (self._finished and self.batch):
                return
        if not self.batch:
            raise ValueError(f"data: an epoch has no batch (epoch {self.epoch + 1} of {self.epochs})")
        logs = {"loss": math.nan, **self.epoch_metrics.means(), "skipped_steps": float(self.skipped_steps)}
        if self._validation is not None and self._validates_now():
            for callback in self._callbacks:
                callback.on_validation_begin(self)
            results = self._validate(self._validation)
            logs |= {f"val_{name}": value for name, value in results.items()}
            for callback in self._callbacks:
                callback.on_validation_end(self, results)
        with interrupts.deferred():
            self.history.epochs.append(logs)
            for callback in self._callbacks:
                callback.on_epoch_end(self, logs)
            self.epoch, self.batch, self.epoch_metrics = self.epoch + 1, 0, Metrics()
            self.skipped_steps = 0
        if self._state_path is not None:
            self.save(self._state_path)

    def _validates_now(self) -> bool:
        """Whether this epoch is one of those that `validation_freq` means."""
        number = self.epoch + 1
        if isinstance(self._validation_freq, int):
            return number % self._validation_freq == 0
        return number in self._validation_freq

    def _is_stopped(self) -> bool:
        """Whether this run is to be left now."""
        return self.stop

    def _start(self) -> int:
        """How many of the epoch's batches that `batches` gives this process have been used."""
        return self.batch

    def _next(self, batches: Iterator[Any], wanted: int) -> Any:
        """The next batches, at most so many, in the form that `_update` takes; its length is their number."""
        return list(itertools.islice(batches, wanted))

    def _begin_step(self) -> None:
        for callback in self._callbacks:
            callback.on_step_begin(self)

    def _validate(self, batches: Batches) -> dict[str, float]:
        metrics = Metrics()
        for number, batch in enumerate(itertools.islice(batches.epoch(0, 0, seed=0), self._validation_steps)):
            for callback in self._callbacks:
                callback.on_validation_step_begin(self, number)
            metrics.add(self.model.test_step(batch))
            for callback in self._callbacks:
                callback.on_validation_step_end(self, number, metrics.means())
        return metrics.means()

    def _update(self, chunk: Any) -> None:
        """One update with the gradient of the batches in `chunk` as if they were one batch."""
        start = time.perf_counter()
        chunk = [self._transformed(number, batch) for number, batch in enumerate(chunk)]
        metrics, tokens = Metrics(), sum(token_count(batch) for batch in chunk)
        # What the loss of all batches together is divided by, so that their gradients only need to be added.
        divisors: dict[str, float] = {}
        for batch in chunk:
            for name, value in self.model.loss_divisors(batch).items():
                divisors[name] = divisors.get(name, 0.0) + value
        if not divisors["weight"]:
            self._skip(len(chunk))
            return
        self._gradients.clear()
        for number, batch in enumerate(chunk):
            seed = derived_seed(Purpose.BATCH, self._seed, self.step, number)
            try:
                new, _ = self.model.loss_and_gradients(
                    batch, seed=seed, into=self._gradients, recompute=self._recompute, divisors=divisors
                )
            except FloatingPointError as error:
                raise FloatingPointError(f"update {self.step + 1} was not made: {error}") from None
            metrics.add(new)
        self._apply(metrics, len(chunk), tokens, start)

    def _apply(self, metrics: Metrics, batches: int, tokens: int, start: float) -> None:
        """Make the update, for which so many batches of so many tokens have been differentiated since `start`."""
        logs = metrics.means()
        logs["learning_rate"] = self.optimizer.current_learning_rate()
        with interrupts.deferred():
            norm = self.optimizer.apply_gradients(self.model, self._gradients)
            self._count(batches)
            self.epoch_metrics.add(metrics)
            self.history.steps.append((logs["loss"], logs["learning_rate"]))
        if norm is not None:
            logs["gradient_norm"] = norm
        speed = tokens / (time.perf_counter() - start)
        self.tokens_per_second += (0.1 if self.tokens_per_second else 1.0) * (speed - self.tokens_per_second)
        for callback in self._callbacks:
            callback.on_step_end(self, logs)

    def _transformed(self, number: int, batch: Any) -> Any:
        """Batch `number` of the update, after the user's function, as arrays."""
        if self._transform is not None:
            batch = self._transform(batch, derived_seed(Purpose.TRANSFORM, self._seed, self.step, number))
        return read_batch(batch, self._labels_are_pairs)

    def _count(self, batches: int) -> None:
        self.batch += batches
        self.batches_done += batches

    def _skip(self, batches: int) -> None:
        """Pass over batches that there is nothing to learn from: with an update, weights would only decay."""
        if not self._warned_of_skipping:
            self._warned_of_skipping = True
            warnings.warn(
                f"data: all labels of batch {self.batch + 1} of epoch {self.epoch + 1} have weight 0, so it makes no "
                "update; skipped_steps in the logs counts such steps",
                UserWarning,
                stacklevel=7,
            )
        with interrupts.deferred():
            self._count(batches)
            self.skipped_steps += 1
        for callback in self._callbacks:
            callback.on_step_skipped(self)

    def __repr__(self) -> str:
        return f"<Trainer of {self.model.name!r}: epoch {self.epoch} of {self.epochs}, {self.step} updates>"


def _expect(argument: str, value: Any, kind: type) -> Any:
    """The value, if it is of its kind."""
    if isinstance(value, kind):
        return value
    raise TypeError(f"{argument}: expected {kind.__module__}.{kind.__name__}, got {type(value).__name__}")


def _warn_of_untrained(encoder: Any) -> None:
    """Say so if a layer of the encoder cannot be trained here that looks as if it could."""
    layer = encoder.arguments.embedding_layer
    if layer is not None and getattr(layer, "trainable", True) and getattr(layer, "weights", ()):
        warnings.warn(
            f"embedding_layer: the given {type(layer).__name__} is not trained, it stays as it is; train it with the "
            "gradients of input_word_embeddings that encoder.vjp gives, or set its trainable to False",
            UserWarning,
            stacklevel=5,
        )
