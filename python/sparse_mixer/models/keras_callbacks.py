"""Keras's callbacks in our training: hooks under Keras's names, called with what Keras gives them.

Known by their methods, whichever framework they are from: `set_model`, ``on_epoch_end(epoch, logs)`` and their kin. The
model that they see is a `ModelView`: our model, with the attributes that Keras's own callbacks look for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import training
from sparse_mixer._core.checks import as_float, as_list
from sparse_mixer.optimizers import Optimizer

POSSIBLE_CALLBACKS = (
    "possible are those of sparse_mixer.training and those with Keras's methods (set_model, set_params, "
    "on_epoch_end(epoch, logs), ...)"
)


# Callbacks of Keras that write files or print.
_WRITERS = {"BackupAndRestore", "CSVLogger", "ModelCheckpoint", "ProgbarLogger", "RemoteMonitor", "TensorBoard"}


def adapted(callbacks: Any) -> list[training.Callback]:
    """Callbacks as our training calls them.

    Args:
        callbacks: A list of callbacks of ours and of Keras, one of them, a ``CallbackList``, or None.

    Raises:
        TypeError: An object that is neither.
    """
    if callbacks is None:
        return []
    if isinstance(callbacks, training.Callback) or _is_keras(callbacks):
        callbacks = [callbacks]
    elif hasattr(callbacks, "callbacks"):
        callbacks = callbacks.callbacks
    return [_adapted(callback) for callback in as_list("callbacks", callbacks, "callbacks")]


def _adapted(callback: Any) -> training.Callback:
    if isinstance(callback, training.Callback):
        return callback
    if isinstance(callback, type) or not _is_keras(callback):
        kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        raise TypeError(
            f"callbacks: expected sparse_mixer.training.Callback or one of Keras, got {kind}; {POSSIBLE_CALLBACKS}"
        )
    return KerasCallback(callback)


def _is_keras(callback: Any) -> bool:
    return callable(getattr(callback, "set_model", None)) and callable(getattr(callback, "on_epoch_end", None))


class Number(float):
    """A number of this moment, with what Keras's code asks of a variable that holds one."""

    dtype = np.dtype(np.float32)
    shape = ()
    _write: Any = None

    def numpy(self) -> npt.NDArray[Any]:
        """The value, an array without axes."""
        return np.asarray(int(self) if self.is_integer() and self._write is None else float(self))

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


class Counter:
    """A number of batches that goes on: what TensorBoard's callback takes hold of once and reads again and again."""

    def __init__(self) -> None:
        self.count = 0

    def numpy(self) -> npt.NDArray[Any]:
        """The count, an array without axes."""
        return np.asarray(self.count)

    def __int__(self) -> int:
        return self.count

    __index__ = __int__

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
        return Number(own.iterations)

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
        """Write the model; files of ours hold weights and configuration alike."""
        self._own.save(filepath)

    def save(self, filepath: Any, overwrite: bool = True, save_format: Any = None, options: Any = None) -> None:
        """Write the model."""
        self._own.save(filepath)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_own"], name)


class KerasCallback(training.Callback):
    """A callback of Keras among ours."""

    def __init__(self, callback: Any) -> None:
        """Make one around `callback`."""
        self.callback = callback
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        self.on_every_rank = getattr(callback, "on_every_rank", not kinds & _WRITERS)
        self._view: ModelView | None = None
        self._batch = 0

    def on_train_begin(self, trainer: Any) -> None:
        """See `Callback`."""
        self._view = ModelView(trainer)
        self._call("set_params", {"verbose": 0, "epochs": trainer.epochs, "steps": trainer.batches.steps})
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
        self._call("on_train_end", {})

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
