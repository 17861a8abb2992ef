"""Optimisers that update an encoder or a model in place, in the core.

The formulas are those of ``tf_keras.optimizers`` and of the Model Garden's LAMB, and so are names and order of the
positional arguments. Other arguments of theirs (``clipnorm``, ``clipvalue``, ``amsgrad``, ``use_ema``, ...) do not
exist; keyword-only ones are ours, but for ``global_clipnorm``. AdamW and LAMB leave layer norms and biases out of the
decay unless told otherwise. The global norm is that of the gradients; TensorFlow counts every occurrence of a word in a
batch by itself in the word table's part of it. Weights stay in the core's packed storage, the moments beside them.

Examples:
    >>> import numpy as np
    >>> from sparse_mixer import SparseMixer, optimizers
    >>> encoder = SparseMixer(100, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, seed=0)
    >>> ids = np.zeros((4, 8), np.int32)
    >>> inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=ids)
    >>> optimizer = optimizers.AdamW(1e-3)
    >>> outputs, vjp = encoder.vjp(inputs, training=True, seed=0)
    >>> grads = vjp({"pooled_output": outputs["pooled_output"]})
    >>> optimizer.apply_gradients(encoder, grads)
    >>> optimizer.iterations
    1
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer import schedules as schedules
from sparse_mixer._core.arrays import as_float32
from sparse_mixer._core.checks import as_bool, as_float, as_step, as_strings
from sparse_mixer.gradients import INPUTS, Gradients, parts_of

Array = npt.NDArray[np.float32]

NORMS_AND_BIASES = ("layer_norm", "LayerNorm", "bias")
"""Patterns of the weights that BERT's recipe does not decay."""


class Optimizer:
    """Base of the optimisers."""

    def __init__(
        self,
        rule: Mapping[str, Any],
        learning_rate: float | Callable[[int], float],
        global_clipnorm: float | None,
        exclude_from_weight_decay: Sequence[str],
        exclude_from_layer_adaptation: Sequence[str] = (),
    ) -> None:
        self.learning_rate = learning_rate
        self.global_clipnorm = global_clipnorm
        self._rule = dict(rule)
        self._no_decay = _patterns("exclude_from_weight_decay", exclude_from_weight_decay)
        self._no_adaptation = _patterns("exclude_from_layer_adaptation", exclude_from_layer_adaptation)
        self._keys: list[str] = []
        self._core: _native.Optimizer | None = None
        self._restored: tuple[int, list[tuple[str, Array]]] | None = None
        _native.Optimizer(json.dumps(self._rule), [])  # refuses settings that cannot work

    @property
    def learning_rate(self) -> float | Callable[[int], float]:
        """A number, or a callable from the number of updates done to a number. May be set at any time.

        Raises:
            TypeError: Set to something else.
            ValueError: Set to a number that is negative or not finite.
        """
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | Callable[[int], float]) -> None:
        self._learning_rate = value if callable(value) else _not_negative("learning_rate", value)

    @property
    def global_clipnorm(self) -> float | None:
        """Gradients of all weights together are scaled down to this norm; None for no clipping. May be set at any time.

        Raises:
            TypeError: Set to something that is no number.
            ValueError: Set to a number that is not finite or not above 0.
        """
        return self._global_clipnorm

    @global_clipnorm.setter
    def global_clipnorm(self, value: float | None) -> None:
        norm = None if value is None else as_float("global_clipnorm", value)
        if norm is not None and norm <= 0.0:
            raise ValueError(f"global_clipnorm: expected a number above 0, got {value}")
        self._global_clipnorm = norm

    @property
    def iterations(self) -> int:
        """Number of updates done."""
        if self._core is None:
            return 0 if self._restored is None else self._restored[0]
        return self._core.step

    @property
    def core(self) -> _native.Optimizer | None:
        """The core's optimiser, which has the moments; None before the first update."""
        return self._core

    @property
    def name(self) -> str:
        """Name of the rule."""
        return str(self._rule["name"])

    def current_learning_rate(self) -> float:
        """The learning rate of the next update."""
        rate = self.learning_rate
        return float(rate(self.iterations)) if callable(rate) else float(rate)

    def exclude_from_weight_decay(self, var_names: Sequence[str]) -> None:
        """Leave the weights whose key matches one of the regular expressions `var_names` out of weight decay.

        Raises:
            RuntimeError: The first update has been made.
        """
        if self._core is not None:
            raise RuntimeError("exclude_from_weight_decay: call it before the first update")
        self._no_decay = _patterns("var_names", var_names)

    def apply_gradients(self, target: Any, gradients: Mapping[str, Any], *, scale: float = 1.0) -> float | None:
        """Make one update of the weights of `target`. It is made completely, or on an error not at all.

        Ctrl-C either comes before the first change, or the update runs to its end behind the caller's back:
        `iterations` tells, and whoever uses the weights next waits for it.

        Args:
            target: The encoder or model; the same one in every call.
            gradients: What ``vjp`` returned, or any mapping from weight keys to arrays. Weights that nothing which was
                differentiated depends on, that the mapping lacks, or that are not trainable, keep values and moments.
                Gradients of inputs are passed over. What ``vjp`` or ``loss_and_gradients`` has made can be read until
                the next of them is called, which takes over their memory; ``gradients.copy()`` keeps them.
            scale: Factor of the gradients before clipping: ``1 / n`` for sums over n micro-batches.

        Returns:
            The global norm of the scaled gradients before clipping; None without clipping.

        Raises:
            ValueError: A gradient of a wrong shape or for an unknown weight; with clipping, gradients that are not
                finite; weights that are not stored as float32.
        """
        parts = parts_of(target)
        if self._core is None:
            self._build(parts, self._restored)
        elif [key for part in parts for key in part.weight_keys] != self._keys:
            raise ValueError("target: the optimizer was built for other weights")
        assert self._core is not None
        given, known = _as_buffers(target, gradients)
        updates = [
            (part.core, buffer, [key in known and key in trainable for key in part.weight_keys])
            for part, buffer in zip(parts, given.buffers, strict=True)
            for trainable in [{variable.key for variable in part.trainable_weights if hasattr(variable, "key")}]
        ]
        rate = self.current_learning_rate()
        return self._core.apply(updates, rate, self.global_clipnorm, as_float("scale", scale))

    def _build(self, parts: Sequence[Any], state: tuple[int, list[tuple[str, Array]]] | None) -> None:
        core, keys = self._made_for(parts, state)
        self._core, self._keys, self._restored = core, keys, None

    def _made_for(
        self, parts: Sequence[Any], state: tuple[int, list[tuple[str, Array]]] | None
    ) -> tuple[_native.Optimizer, list[str]]:
        """The core's optimiser of these parts, and the keys of their weights."""
        specs = [
            (part.core, [not _matches(self._no_decay, key) for key in keys], [self._adapts(key) for key in keys])
            for part in parts
            for keys in [part.weight_keys]
        ]
        core = _native.Optimizer(json.dumps(self._rule), specs)
        if state is not None:
            core.restore(*state)
        return core, [key for part in parts for key in part.weight_keys]

    def _adapts(self, key: str) -> bool:
        return not _matches(self._no_adaptation or self._no_decay, key)

    def get_state(self) -> tuple[int, dict[str, Array]]:
        """Number of updates, and copies of all moments by name (``"<weight key>/<moment>"``)."""
        if self._core is None:
            count, arrays = (0, []) if self._restored is None else self._restored
            return count, {name: array.copy() for name, array in arrays}
        return self._core.step, dict(self._core.state())

    def set_state(self, iterations: int, moments: Mapping[str, npt.ArrayLike], target: Any = None) -> None:
        """Take over a state from `get_state`.

        Args:
            iterations: Number of updates.
            moments: Arrays by name.
            target: The encoder or model that will be updated. Without it, a state that is set before the first update
                is checked only there.

        Raises:
            ValueError: Moments of other weights or shapes; nothing has changed then.
        """
        if self._core is None and target is None:
            self._restored = _checked_state(iterations, moments)
        else:
            self.staged_state(iterations, moments, target)()

    def staged_state(self, iterations: int, moments: Mapping[str, npt.ArrayLike], target: Any) -> Callable[[], None]:
        """Check a state and make it ready: `set_state` in two steps, the second of which cannot fail.

        Args:
            iterations: As in `set_state`.
            moments: As there.
            target: As there; None for what has been updated so far.

        Returns:
            A function that takes the state over.

        Raises:
            ValueError: Moments of other weights or shapes; nothing has changed then.
        """
        state = _checked_state(iterations, moments)
        core = self._core
        if target is None:
            if core is None:
                raise ValueError("target: missing, and nothing has been updated so far")
            return lambda: core.restore(*state)
        staged, keys = self._made_for(parts_of(target), state)

        def commit() -> None:
            self._core, self._keys, self._restored = staged, keys, None

        return commit

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__, _core=None)
        if self._core is not None:
            # Used by the next update.
            count, moments = self.get_state()
            state["_restored"] = (count, list(moments.items()))
        return state

    def get_config(self) -> dict[str, Any]:
        """The settings, JSON-able unless the learning rate is an own callable."""
        rate = self.learning_rate
        return {
            **self._rule,
            "learning_rate": rate.get_config() if isinstance(rate, schedules.LearningRateSchedule) else rate,
            "global_clipnorm": self.global_clipnorm,
            "exclude_from_weight_decay": [pattern.pattern for pattern in self._no_decay],
            "exclude_from_layer_adaptation": [pattern.pattern for pattern in self._no_adaptation],
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} iterations={self.iterations} learning_rate={self.learning_rate!r}>"


class AdamW(Optimizer):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101), as Keras's.

    Unlike Keras, and like BERT, layer norms and biases do not decay unless `exclude_from_weight_decay` is empty. The
    original BERT's ``AdamWeightDecay`` is ``AdamW(rate, weight_decay=0.01, epsilon=1e-6, global_clipnorm=1.0)``.
    """

    def __init__(
        self,
        learning_rate: float | Callable[[int], float] = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        *,
        global_clipnorm: float | None = None,
        exclude_from_weight_decay: Sequence[str] = NORMS_AND_BIASES,
        epsilon_rule: str = "uncorrected",
    ) -> None:
        """Make an optimiser.

        Args:
            learning_rate: A number, or a schedule.
            weight_decay: Share of ``learning_rate * weight`` that each update takes off.
            beta_1: Decay of the first moment, in [0, 1).
            beta_2: Decay of the second moment, in [0, 1).
            epsilon: Added to the root of the second moment; above 0.
            global_clipnorm: Largest norm over all gradients together.
            exclude_from_weight_decay: Regular expressions; weights whose key one of them matches do not decay.
            epsilon_rule: ``"uncorrected"``: epsilon is added to the root of the second moment as it is (Keras, BERT);
                ``"corrected"``: after bias correction (optax, PyTorch).

        Raises:
            ValueError: A setting that cannot work.
        """
        rule = {
            "name": "adamw",
            "beta_1": as_float("beta_1", beta_1),
            "beta_2": as_float("beta_2", beta_2),
            "epsilon": as_float("epsilon", epsilon),
            "epsilon_rule": epsilon_rule,
            "weight_decay": _not_negative("weight_decay", weight_decay),
        }
        super().__init__(rule, learning_rate, global_clipnorm, exclude_from_weight_decay)

    @classmethod
    def paper(cls, learning_rate: float | Callable[[int], float], global_clipnorm: float | None = None) -> AdamW:
        """The rule of the Sparse Mixer paper's code: optax's AdamW, every weight decays by 0.01, epsilon 1e-6."""
        return cls(
            learning_rate,
            0.01,
            epsilon=1e-6,
            global_clipnorm=global_clipnorm,
            exclude_from_weight_decay=(),
            epsilon_rule="corrected",
        )


class LAMB(Optimizer):
    """Adam's direction scaled per weight by a trust ratio (https://arxiv.org/abs/1904.00962), as the Model Garden's."""

    def __init__(
        self,
        learning_rate: float | Callable[[int], float] = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay_rate: float = 0.0,
        exclude_from_weight_decay: Sequence[str] = NORMS_AND_BIASES,
        exclude_from_layer_adaptation: Sequence[str] = (),
        *,
        global_clipnorm: float | None = None,
    ) -> None:
        """Make an optimiser.

        Args:
            learning_rate: A number, or a schedule.
            beta_1: Decay of the first moment, in [0, 1).
            beta_2: Decay of the second moment, in [0, 1).
            epsilon: Added to the root of the bias-corrected second moment; above 0.
            weight_decay_rate: Share of the weight in its own direction.
            exclude_from_weight_decay: Regular expressions of weights that do not decay.
            exclude_from_layer_adaptation: Regular expressions of weights whose ratio is 1; if empty, those that do not
                decay.
            global_clipnorm: Largest norm over all gradients together.

        Raises:
            ValueError: A setting that cannot work.
        """
        rule = {
            "name": "lamb",
            "beta_1": as_float("beta_1", beta_1),
            "beta_2": as_float("beta_2", beta_2),
            "epsilon": as_float("epsilon", epsilon),
            "weight_decay": _not_negative("weight_decay_rate", weight_decay_rate),
        }
        super().__init__(rule, learning_rate, global_clipnorm, exclude_from_weight_decay, exclude_from_layer_adaptation)


class SGD(Optimizer):
    """Gradient descent with momentum, as Keras's."""

    def __init__(
        self,
        learning_rate: float | Callable[[int], float] = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        global_clipnorm: float | None = None,
        exclude_from_weight_decay: Sequence[str] = (),
    ) -> None:
        """Make an optimiser.

        Args:
            learning_rate: A number, or a schedule.
            momentum: Share of the last update that is kept, in [0, 1).
            nesterov: Whether the gradient counts again after the momentum.
            weight_decay: Share of ``learning_rate * weight`` that each update takes off.
            global_clipnorm: Largest norm over all gradients together.
            exclude_from_weight_decay: Regular expressions of weights that do not decay.

        Raises:
            ValueError: A setting that cannot work.
        """
        rule = {
            "name": "sgd",
            "momentum": as_float("momentum", momentum),
            "nesterov": as_bool("nesterov", nesterov),
            "weight_decay": _not_negative("weight_decay", 0.0 if weight_decay is None else weight_decay),
        }
        super().__init__(rule, learning_rate, global_clipnorm, exclude_from_weight_decay)


class Adafactor(Optimizer):
    """Second moments of matrices as row and column means (https://arxiv.org/abs/1804.04235), as Keras's."""

    def __init__(
        self,
        learning_rate: float | Callable[[int], float] = 0.001,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        weight_decay: float = 0.0,
        *,
        global_clipnorm: float | None = None,
        exclude_from_weight_decay: Sequence[str] = (),
    ) -> None:
        """Make an optimiser.

        Args:
            learning_rate: A number, or a schedule.
            beta_2_decay: Exponent of the step in the decay of the second moment, ``1 - step**beta_2_decay``; at most 0.
                (optax's ``decay_rate`` is the same exponent without its minus.)
            epsilon_1: Added to squared gradients; above 0.
            epsilon_2: Lower bound of a weight's root mean square in its step size.
            clip_threshold: Largest root mean square of a direction; above 0.
            relative_step: Bound the learning rate by one over the root of the step. Keras does so either way.
            weight_decay: Share of ``learning_rate * weight`` that each update takes off.
            global_clipnorm: Largest norm over all gradients together.
            exclude_from_weight_decay: Regular expressions of weights that do not decay.

        Raises:
            ValueError: A setting that cannot work.
        """
        rule = {
            "name": "adafactor",
            "beta_2_decay": as_float("beta_2_decay", beta_2_decay),
            "epsilon_1": as_float("epsilon_1", epsilon_1),
            "epsilon_2": as_float("epsilon_2", epsilon_2),
            "clip_threshold": as_float("clip_threshold", clip_threshold),
            "relative_step": as_bool("relative_step", relative_step),
            "weight_decay": _not_negative("weight_decay", 0.0 if weight_decay is None else weight_decay),
        }
        super().__init__(rule, learning_rate, global_clipnorm, exclude_from_weight_decay)


def _not_negative(argument: str, value: Any) -> float:
    number = as_float(argument, value)
    if number < 0.0:
        raise ValueError(f"{argument}: expected at least 0, got {number}")
    return number


def _checked_state(iterations: int, moments: Mapping[str, npt.ArrayLike]) -> tuple[int, list[tuple[str, Array]]]:
    count = as_step("iterations", iterations)
    if not isinstance(moments, Mapping):
        raise TypeError(f"moments: expected a mapping, got {type(moments).__name__}")
    return count, [(name, np.array(as_float32(name, array))) for name, array in moments.items()]


def _patterns(argument: str, patterns: Sequence[str]) -> list[re.Pattern[str]]:
    compiled = []
    for position, pattern in enumerate(as_strings(argument, patterns, "regular expressions")):
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{argument}[{position}]: {pattern!r} is no regular expression: {error}") from None
    return compiled


def _matches(patterns: Sequence[re.Pattern[str]], key: str) -> bool:
    return any(pattern.search(key) for pattern in patterns)


def _as_buffers(target: Any, gradients: Mapping[str, Any]) -> tuple[Gradients, set[str]]:
    """Gradients in the core's buffers, and the keys of the weights that have one."""
    if isinstance(gradients, Gradients):
        return gradients, set(gradients)
    if not isinstance(gradients, Mapping):
        raise TypeError(f"gradients: expected a mapping from keys to arrays, got {type(gradients).__name__}")
    buffers = Gradients(target)
    given = {key: gradient for key, gradient in gradients.items() if key not in INPUTS}
    unknown = sorted(map(str, set(given) - set(buffers)))
    if unknown:
        raise ValueError(f"gradients: no weights are called {unknown}")
    present = {key for key, gradient in given.items() if gradient is not None}
    for key in present:
        buffers.set(key, given[key])
    return buffers, present
