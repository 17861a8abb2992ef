"""Keras's callbacks in our training: hooks under Keras's names, called with what Keras gives them.

Known by their methods, whichever framework they are from: `set_model`, ``on_epoch_end(epoch, logs)`` and their kin. The
model that they see is a `ModelView`: our model, with the attributes that Keras's own callbacks look for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import training
from sparse_mixer._core.checks import as_float, as_list
from sparse_mixer.models.keras_objects import is_foreign
from sparse_mixer.optimizers import Optimizer

POSSIBLE_CALLBACKS = (
    "possible are those of sparse_mixer.training and those with Keras's methods (set_model, set_params, "
    "on_epoch_end(epoch, logs), ...)"
)


# Callbacks of Keras that write files or print.
_WRITERS = {"BackupAndRestore", "CSVLogger", "ModelCheckpoint", "ProgbarLogger", "RemoteMonitor", "TensorBoard"}
# Those that reach into Keras's models, and what there is instead.
_INSTEAD = {
    "BackupAndRestore": "fit(state_path=...) saves the state and resumes from it",
    "ProgbarLogger": "verbose=1 shows the progress",
    "SwapEMAWeights": "optimisers keep no averages of weights here",
}


def adapted(callbacks: Any, verbose: int = 0) -> list[training.Callback]:
    """Callbacks as our training calls them.

    Args:
        callbacks: A list of callbacks of ours and of Keras, one of them, a ``CallbackList``, or None.
        verbose: What those of Keras are told of the output.

    Raises:
        ValueError: One of Keras that cannot work.
        TypeError: An object that is neither.
    """
    if callbacks is None:
        return []
    if isinstance(callbacks, training.Callback) or _is_keras(callbacks):
        callbacks = [callbacks]
    elif hasattr(callbacks, "callbacks"):
        callbacks = callbacks.callbacks
    return [_adapted(callback, verbose) for callback in as_list("callbacks", callbacks, "callbacks")]


def _adapted(callback: Any, verbose: int) -> training.Callback:
    if isinstance(callback, training.Callback):
        return callback
    if isinstance(callback, type) or not _is_keras(callback):
        kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        raise TypeError(
            f"callbacks: expected sparse_mixer.training.Callback or one of Keras, got {kind}; {POSSIBLE_CALLBACKS}"
        )
    for name in [base.__name__ for base in type(callback).__mro__]:
        if name in _INSTEAD and is_foreign(callback):
            raise ValueError(f"callbacks: {name} needs a model of Keras; {_INSTEAD[name]}")
    return KerasCallback(callback, verbose)


def _is_keras(callback: Any) -> bool:
    return callable(getattr(callback, "set_model", None)) and callable(getattr(callback, "on_epoch_end", None))


class Number(float):
    """A number of this moment, with what Keras's code asks of a variable that holds one."""

    dtype = np.dtype(np.float32)
    shape = ()
    _write: Any = None

    def numpy(self) -> npt.NDArray[Any]:
        """The value, an array without axes."""
        return np.asarray(float(self))

    def value(self) -> npt.NDArray[Any]:
        """As `numpy`."""
        return self.numpy()

    read_value = value

    def assign(self, value: Any) -> None:
        """Set what the number was read from.

        Raises:
            TypeError: It cannot be set.
        """
        if self._write is None:
            raise TypeError("assign: this number is only read")
        self._write(as_float("learning_rate", np.asarray(value).item()))


class Whole(int):
    """A count of this moment, with what Keras's code asks of a variable that holds one."""

    dtype = np.dtype(np.int64)
    shape = ()

    def numpy(self) -> npt.NDArray[Any]:
        """The value, an array without axes."""
        return np.asarray(int(self))

    value = read_value = numpy


class Counter:
    """A number of batches that goes on: what TensorBoard's callback takes hold of once and reads again and again."""

    def __init__(self) -> None:
        self.count = 0

    def numpy(self) -> npt.NDArray[Any]:
        """The count, an array without axes."""
        return np.asarray(self.count)

    def value(self) -> npt.NDArray[Any]:
        """As `numpy`."""
        return self.numpy()

    def __int__(self) -> int:
        return self.count

    __index__ = __int__

    def __mod__(self, number: int) -> int:
        return self.count % number

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self.count, dtype)


class OptimizerView:
    """Our optimiser as Keras's callbacks know theirs."""

    def __init__(self, optimizer: Optimizer) -> None:
        object.__setattr__(self, "_own", optimizer)

    @property
    def learning_rate(self) -> Any:
        """The rate as a number that can be assigned to."""
        own: Optimizer = object.__getattribute__(self, "_own")
        number = Number(own.current_learning_rate())
        number._write = self._set_rate
        return number

    @property
    def lr(self) -> Any:
        """As `learning_rate`."""
        return self.learning_rate

    @property
    def iterations(self) -> Any:
        """Number of updates done."""
        own: Optimizer = object.__getattribute__(self, "_own")
        return Whole(own.iterations)

    def _set_rate(self, value: float) -> None:
        own: Optimizer = object.__getattribute__(self, "_own")
        if callable(own.learning_rate):
            raise TypeError("learning_rate: this optimiser has a schedule, which a callback cannot replace")
        own.learning_rate = value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("learning_rate", "lr"):
            self._set_rate(as_float("learning_rate", np.asarray(value).item()))
            return
        setattr(object.__getattribute__(self, "_own"), name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_own"), name)


class ModelView:
    """Our model as Keras's callbacks see theirs.

    Attributes:
        stop_training: Set by callbacks to end the run.
        history: The run's history.
    """

    def __init__(self, trainer: Any) -> None:
        self._own = trainer.model
        self.optimizer = OptimizerView(trainer.optimizer)
        self.stop_training = False
        self.history = trainer.history
        # What TensorBoard's callback and others read of a model's insides.
        self._train_counter, self._test_counter, self._predict_counter = Counter(), Counter(), Counter()
        self._is_graph_network = False
        self._distribution_strategy = None
        self.distribute_strategy = None
        self.run_eagerly = True
        self.train_tf_function = None

    def save_weights(self, filepath: Any, overwrite: bool = True, save_format: Any = None, options: Any = None) -> None:
        """Write the model; files of ours hold weights and configuration alike.

        Raises:
            ValueError: A format, which the ending of the name decides, or a name that ends as none of ours does.
            FileExistsError: The file is there and is not to be overwritten.
        """
        if save_format is not None:
            raise ValueError(f"save_format: got {save_format!r}; name the file *.safetensors, *.npz or *.weights.h5")
        if not overwrite and Path(filepath).exists():
            raise FileExistsError(f"{filepath} is there, and overwrite is False")
        self._own.save(filepath)

    save = save_weights

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__["_own"]
        if not hasattr(own, name):
            raise AttributeError(
                f"callbacks: the model that they see is of sparse_mixer.models; {type(own).__name__} has no {name!r}"
            )
        return getattr(own, name)


class KerasCallback(training.Callback):
    """A callback of Keras among ours."""

    def __init__(self, callback: Any, verbose: int = 0) -> None:
        """Make one around `callback`, which is told of `verbose`."""
        self.callback = callback
        self._verbose = verbose
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        self.on_every_rank = getattr(callback, "on_every_rank", not kinds & _WRITERS)
        self._view: ModelView | None = None
        self._batch = 0

    def on_train_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._view = ModelView(trainer)
        self._call("set_params", {"verbose": self._verbose, "epochs": trainer.epochs, "steps": trainer.batches.steps})
        self.callback.set_model(self._view)
        self._call("on_train_begin", {})
        self._heed(trainer)

    def on_epoch_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._batch = trainer.batch
        self._call("on_epoch_begin", trainer.epoch, {})
        self._heed(trainer)

    def on_step_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._batch = trainer.batch
        self._call("on_train_batch_begin", self._batch, {})

    def on_step_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`: as in Keras, `logs` are means over the epoch so far."""
        if self._view is not None:
            self._view._train_counter.count += 1
        self._call("on_train_batch_end", self._batch, trainer.epoch_metrics.means())
        self._heed(trainer)

    def on_validation_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._call("on_test_begin", {})

    def on_validation_step_begin(self, trainer: Any, number: int) -> None:
        """See `Callback`."""
        self._call("on_test_batch_begin", number, {})

    def on_validation_step_end(self, trainer: Any, number: int, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        if self._view is not None:
            self._view._test_counter.count += 1
        self._call("on_test_batch_end", number, dict(logs))

    def on_validation_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._call("on_test_end", dict(logs))

    def on_epoch_end(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """See `Callback`. What the callback adds to the logs, others see, and the history has it."""
        shared = logs if isinstance(logs, dict) else dict(logs)
        self._call("on_epoch_end", trainer.epoch, shared)
        for name, value in shared.items():
            if type(value) is not float:
                shared[name] = float(np.asarray(value))
        self._heed(trainer)

    def on_train_end(self, trainer: Any) -> None:
        """See `Callback`."""
        epochs = trainer.history.epochs
        self._call("on_train_end", dict(epochs[-1]) if epochs else {})

    def _call(self, hook: str, *arguments: Any) -> None:
        method = getattr(self.callback, hook, None)
        if callable(method):
            method(*arguments)

    def _heed(self, trainer: Any) -> None:
        """End the run if the callback says so."""
        if self._view is not None and self._view.stop_training:
            trainer.model.stop_training = True
            trainer.finish()

    def __repr__(self) -> str:
        return f"<KerasCallback {type(self.callback).__name__}>"
