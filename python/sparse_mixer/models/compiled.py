"""Keras's way to use a model: compile, fit, evaluate, predict, batch by batch or all at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparse_mixer import training
from sparse_mixer._core.paths import PathLike
from sparse_mixer.models import fit_data, prediction
from sparse_mixer.models.compile import Compiled, criterion_of, metrics_of, weights_of
from sparse_mixer.models.keras_callbacks import adapted
from sparse_mixer.models.keras_objects import POSSIBLE_OPTIMIZERS, optimizer_of
from sparse_mixer.optimizers import Optimizer
from sparse_mixer.training.trainable import Trainable

if TYPE_CHECKING:
    from sparse_mixer.distributed.communicator import Communicator


class CompiledModel(Trainable):
    """What models do in Keras's manner; base of `Model`."""

    _labels_are_pairs = False
    # Whether `compile` takes a loss and metrics.
    _takes_losses = True
    output_names: tuple[str, ...] = ("logits",)
    """Names of what labels are for."""

    def __init__(self, name: str, variables: Sequence[Any], layers: Sequence[Any]) -> None:
        super().__init__(name, variables, layers)
        self._compiled = Compiled()
        self.stop_training = False

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimiser that the model is compiled with, as one of ours; None before."""
        return self._compiled.optimizer

    @property
    def metrics_names(self) -> list[str]:
        """Names of what `evaluate` gives as a list: the loss, the outputs' losses if there are several, metrics."""
        compiled = self._compiled.names
        if len(self.output_names) == 1:
            return ["loss", *compiled]
        losses = [f"{name}_loss" for name in self.output_names]
        return ["loss", *losses, *(f"{output}_{name}" for output in self.output_names for name in compiled)]

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: Any = None,
        steps_per_execution: Any = None,
        jit_compile: Any = None,
        auto_scale_loss: Any = None,
    ) -> None:
        """Say how the model is trained and what is measured, as in Keras.

        Args:
            optimizer: One of `sparse_mixer.optimizers`; ``"adam"``, ``"adamw"``, ``"sgd"``, ``"adafactor"`` or
                ``"lamb"``; or an optimiser of Keras or the Model Garden of these kinds, of which settings and schedule
                are taken over. None leaves it to `fit`.
            loss: None for the model's own; one of Keras by object or name: cross entropies of logits (also with
                distributions or several classes as labels), squared and absolute error; or a function
                ``loss(labels, logits)``. That returns ``(loss, gradient)``: one loss per row of logits with the
                gradient of their sum, or a single number, the mean over the batch, with its own gradient. Labels and
                logits are arrays, the logits ``[B, classes]`` (``[B, S, classes]`` of a token classifier, ``[B, S]``
                of each end of a span). Only losses per row can have sample weights.
            metrics: A list of names or objects of Keras, or of functions ``(labels, logits) -> one number per row``.
                Without any, the model's own are measured.
            loss_weights: For several outputs, factors of their losses, which are added up.
            weighted_metrics: Metrics that count rows by their sample weights.
            run_eagerly: Ignored, as the three that follow: they say how a framework runs.
            steps_per_execution: Ignored.
            jit_compile: Ignored.
            auto_scale_loss: Ignored.

        Raises:
            ValueError: Something that has no counterpart here; the message says what there is.
            TypeError: Something of a wrong type.
        """
        given = [x for x in (loss, metrics, loss_weights, weighted_metrics) if x is not None and x != []]
        if given and not self._takes_losses:
            raise ValueError(f"loss: a {type(self).__name__} has its own losses and metrics; compile it without others")
        self._compiled = Compiled(
            None if optimizer is None else optimizer_of(optimizer),
            criterion_of(loss),
            [
                *metrics_of("metrics", metrics, weighted=False),
                *metrics_of("weighted_metrics", weighted_metrics, weighted=True),
            ],
            weights_of(loss_weights, self.output_names),
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = (),
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | None = None,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Collection[int] = 1,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        *,
        optimizer: Any = None,
        drop_remainder: bool | None = None,
        seed: int | None = None,
        transform: Callable[[Any, int], Any] | None = None,
        accumulation_steps: int = 1,
        recompute: bool = False,
        state_path: PathLike | None = None,
        save_every: int | None = None,
        resume: bool = True,
        progress: bool | None = None,
        communicator: Communicator | None = None,
    ) -> training.History:
        """Train the model. Positional arguments are Keras's, in its order; the others are ours.

        Args:
            x: Inputs, with `y`; or all of a batch: arrays ``(inputs, labels)``, ``(inputs, labels, sample_weight)`` or
                a dict, an iterable of batches of these forms that starts again every epoch (such as a dataset of
                TensorFlow), or a function from the epoch's number to one. With `steps_per_epoch`, epochs of an
                iterable start where the one before ended, and an iterator will do. Inputs are a dict, a table of
                pandas, or a list of arrays in their order.
            y: Labels of `x`, if these are arrays.
            batch_size: Examples per batch, for arrays; 32 unless given. Iterables make their own batches.
            epochs: Number of the last epoch: passes over the data, less `initial_epoch`.
            verbose: 0 for nothing, 1 for a progress bar, 2 for a line per epoch; ``"auto"`` for a bar if tqdm is there.
            callbacks: Those of `sparse_mixer.training`, and those of Keras.
            validation_split: Share of the arrays, from their end, that is held out and evaluated after each epoch.
            validation_data: What is evaluated after each epoch, in any form of `x` or as ``(x, y)``.
            shuffle: Whether each epoch of arrays has an order of its own, as it has unless this is False.
            class_weight: Factors of the losses of examples by their class.
            sample_weight: One weight per label.
            initial_epoch: Number of the first epoch.
            steps_per_epoch: End an epoch after so many batches.
            validation_steps: Batches of `validation_data` to evaluate; None for all.
            validation_batch_size: Examples per batch there; None for `batch_size`.
            validation_freq: Evaluate after every so many epochs, or after those with these numbers, from 1.
            max_queue_size: Ignored, as the two that follow: nothing is fetched by others.
            workers: Ignored.
            use_multiprocessing: Ignored.
            optimizer: In the place of the one that the model is compiled with, in any form that `compile` takes.
            drop_remainder: Leave out a smaller last batch of arrays.
            seed: Source of order, dropout and jitter; see `sparse_mixer.training.fit`.
            transform: Called as ``transform(batch, seed)`` on every batch, with a seed of its own: for masking.
            accumulation_steps: Batches per update; together they count as one large batch.
            recompute: Compute blocks again in the backward pass: less memory, more time, the same bits.
            state_path: Where the state is saved, and resumed from; see `sparse_mixer.training.fit`.
            save_every: Updates between saves, besides those after each epoch and on Ctrl-C.
            resume: Resume from `state_path` if the file is there.
            progress: Whether there is a progress bar, whatever `verbose` says.
            communicator: The processes that train the model together; see `sparse_mixer.training.fit`.

        Returns:
            The history.

        Raises:
            KeyboardInterrupt: Interrupted: the model is as after the last update, and the state saved.
            FloatingPointError: A loss is NaN or infinite.
            ValueError: An argument that cannot work; a state of another run.
            TypeError: An argument of a wrong type.
        """
        chosen = self._compiled.optimizer if optimizer is None else optimizer_of(optimizer)
        if chosen is None:
            raise ValueError(f"optimizer: missing; give one to compile or fit; {POSSIBLE_OPTIMIZERS}")
        given = fit_data.read(x, y, sample_weight, class_weight, pairs=self._labels_are_pairs, names=self.output_names)
        if validation_split:
            given, held_out = fit_data.split(given, validation_split)
            validation_data = held_out if validation_data is None else validation_data
        elif validation_data is not None:
            validation_data = fit_data.read_validation(
                validation_data, pairs=self._labels_are_pairs, names=self.output_names
            )
        bar, lines = _shown(verbose, progress)
        self.stop_training = False
        return training.fit(
            self,
            given,
            optimizer=chosen,
            epochs=epochs,
            **fit_data.only_for_arrays(given, batch_size=batch_size, shuffle=shuffle),
            drop_remainder=drop_remainder,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            transform=transform,
            accumulation_steps=accumulation_steps,
            recompute=recompute,
            validation_data=validation_data,
            callbacks=[*adapted(callbacks, 1 if verbose == "auto" else int(verbose)), *lines],
            state_path=state_path,
            save_every=save_every,
            resume=resume,
            progress=bar,
            initial_epoch=initial_epoch,
            validation_batch_size=batch_size if validation_batch_size is None else validation_batch_size,
            validation_steps=validation_steps,
            validation_freq=validation_freq,
            communicator=communicator,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Loss and metrics over the data, as at inference.

        Args:
            x: As for `fit`.
            y: As for `fit`.
            batch_size: As for `fit`.
            verbose: Ignored: nothing is printed.
            sample_weight: As for `fit`.
            steps: The most batches to evaluate; None for all.
            callbacks: Must be None or empty.
            max_queue_size: Ignored.
            workers: Ignored.
            use_multiprocessing: Ignored.
            return_dict: Whether all means come as a dict, those of the routers among them. Otherwise, as in Keras, the
                values of `metrics_names` come as a list, or the loss by itself if it is the only one. None for a dict
                before the model is compiled and Keras's form afterwards.

        Raises:
            ValueError: An argument that cannot work.
            TypeError: An argument of a wrong type.
        """
        if callbacks:
            raise ValueError("callbacks: evaluate calls none; pass them to fit")
        given = fit_data.read(x, y, sample_weight, None, pairs=self._labels_are_pairs, names=self.output_names)
        sizes = fit_data.only_for_arrays(given, batch_size=batch_size)
        return self._reported(training.evaluate(self, given, steps=steps, **sizes), return_dict)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
    ) -> Any:
        """What a call gives, logits as a rule, for any number of examples, a few at a time.

        Args:
            x: Inputs as in a call, any number of examples; or an iterable of batches, whose labels are passed over.
            batch_size: Examples that are computed at once, for arrays, rounded up to whole routing groups; 32 unless
                given.
            verbose: Ignored: nothing is printed.
            steps: The most batches to compute; None for all.
            callbacks: Must be None or empty.
            max_queue_size: Ignored.
            workers: Ignored.
            use_multiprocessing: Ignored.

        Returns:
            What a call gives, for all examples: an array, or arrays in the same dict or list.

        Raises:
            ValueError: An argument that cannot work.
            TypeError: An argument of a wrong type.
        """
        if callbacks:
            raise ValueError("callbacks: predict calls none; pass them to fit")
        return prediction.predict(self, x, batch_size, steps)

    def predict_classes(self, x: Any, batch_size: int | None = None, steps: int | None = None) -> Any:
        """Number of the largest logit, in the place of each row of logits that `predict` gives.

        Args:
            x: As for `predict`.
            batch_size: As for `predict`.
            steps: As for `predict`.

        Returns:
            int64: ``[B]`` of a classifier, ``[B, S]`` of a token classifier, starts and ends ``[B]`` each of a span
            labeler. A pre-trainer's are a dict: words ``[B, P]`` under ``"masked_lm_ids"``, classes under
            ``"<head>_labels"``.

        Raises:
            ValueError: A regression, which has no classes.
        """
        return self._classes(self.predict(x, batch_size, steps=steps))

    def predict_on_batch(self, x: Any) -> Any:
        """What a call gives for one batch."""
        return self(x)  # type: ignore[operator]

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        reset_metrics: bool = True,
        return_dict: bool = False,
    ) -> Any:
        """Make one update with one batch.

        Args:
            x: Inputs, or with `y` None all of a batch as in `fit`.
            y: Labels.
            sample_weight: As for `fit`.
            class_weight: As for `fit`.
            reset_metrics: Must be True: what comes back is of this batch alone.
            return_dict: Whether all metrics come as a dict; otherwise as from `evaluate`.

        Returns:
            Loss and metrics before the update.

        Raises:
            ValueError: The model is not compiled with an optimiser.
            FloatingPointError: The loss is NaN or infinite.
        """
        if not reset_metrics:
            raise ValueError("reset_metrics: got False; means over batches are fit's and evaluate's")
        if self._compiled.optimizer is None:
            raise ValueError(f"optimizer: missing; give one to compile; {POSSIBLE_OPTIMIZERS}")
        batch = fit_data.read(x, y, sample_weight, class_weight, pairs=self._labels_are_pairs, names=self.output_names)
        metrics, gradients = self.loss_and_gradients(batch)
        if self.loss_divisors(batch)["weight"] > 0:
            self._compiled.optimizer.apply_gradients(self, gradients)
        return self._reported(metrics.means(), return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, reset_metrics: bool = True, return_dict: bool = False
    ) -> Any:
        """Loss and metrics of one batch, as at inference; arguments as for `train_on_batch`."""
        if not reset_metrics:
            raise ValueError("reset_metrics: got False; means over batches are fit's and evaluate's")
        batch = fit_data.read(x, y, sample_weight, None, pairs=self._labels_are_pairs, names=self.output_names)
        return self._reported(self.test_step(batch).means(), return_dict)

    def _classes(self, predicted: Any) -> Any:
        """The classes in what `predict` gave."""
        return predicted.argmax(-1)

    def _reported(self, means: dict[str, float], return_dict: bool | None) -> Any:
        """All means, or those that Keras gives as a list or a number."""
        if return_dict is None:
            return_dict = self._compiled.optimizer is None
        if return_dict:
            return means
        listed = [means[name] for name in self.metrics_names if name in means]
        return listed if len(listed) > 1 else listed[0]


def _shown(verbose: Any, progress: bool | None) -> tuple[bool | None, list[training.Callback]]:
    """Whether there is a progress bar, and callbacks that print."""
    if verbose not in (0, 1, 2, "auto"):
        raise ValueError(f"verbose: expected 0, 1, 2 or 'auto', got {verbose!r}")
    if progress is not None:
        return progress, []
    if verbose == 2:
        return False, [training.EpochLines()]
    if verbose == 1:
        # A bar needs tqdm.
        return (None, []) if training.has_progress_bar() else (False, [training.EpochLines()])
    return (None if verbose == "auto" else False), []
