"""`SparseMixer` as a layer of Keras 3, with the backends TensorFlow, JAX and PyTorch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras

from sparse_mixer._bridge import WORD_TABLE, Bridge, InnerBridge
from sparse_mixer.keras._arguments import Given
from sparse_mixer.keras._layer import FLOATS, EncoderLayer

if not hasattr(keras, "ops"):
    raise ImportError(f"sparse_mixer.keras: got keras {keras.__version__}, expected Keras 3; for Keras 2 use tf_keras")


@keras.saving.register_keras_serializable(package="sparse_mixer")
class SparseMixer(EncoderLayer, keras.layers.Layer):
    """A Sparse Mixer encoder as a layer of Keras 3.

    As the layer of tf_keras in arguments, call and outputs. Weights are variables of this one layer, in TensorFlow's
    order, named by their keys with "__" for each slash. The routers' losses are added; their metrics are not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the layer with fresh weights; arguments as `sparse_mixer.SparseMixer`, or one `Given`."""
        if keras.backend.backend() not in _OPERATIONS:
            raise ImportError(
                f"sparse_mixer.keras: got backend {keras.backend.backend()!r}, expected one of {sorted(_OPERATIONS)}"
            )
        # `keras.utils.set_random_seed` sets Python's generator, too.
        given = (
            args[0] if args and isinstance(args[0], Given) else Given.read(args, kwargs, lambda: random.getrandbits(63))
        )
        super().__init__(autocast=False, **given.layer)
        arguments = given.arguments
        self._hidden = _Hidden(given.config, arguments, InnerBridge(given.config, given.num_threads, given.isa))
        # A callback cannot be compiled by XLA on its own; JAX calls back all the same.
        self.supports_jit = keras.backend.backend() == "jax"
        self._embedding_layer = given.embedding_layer
        for key, value in given.values.items():
            if given.embedding_layer is None or key != WORD_TABLE:
                self._hidden.variables[key] = self.add_weight(
                    name=key.replace("/", "__"),
                    shape=value.shape,
                    initializer=_constant(value),
                    # A head tied to the table shall see it in its own type.
                    autocast=key == WORD_TABLE,
                    dtype="float32",
                )
        random_calls = arguments.output_dropout or arguments.attention_dropout or arguments.jitter_noise
        if random_calls or arguments.expert_dropout:
            self._seeds = keras.random.SeedGenerator(arguments.seed and arguments.seed % 2**31)
        self.built = True
        self._hidden.inputs = {
            name: keras.Input(shape=spec.shape[1:], dtype=spec.dtype, name=name)
            for name, spec in self._hidden.bridge.encoder.inputs.items()
        }

    # What `EncoderLayer` asks for ---------------------------------------------------------------------------------

    def _encoder_arguments(self) -> tuple[Mapping[str, Any], Any]:
        return self._hidden.config, self._hidden.arguments

    def _value(self, key: str) -> Any:
        return keras.ops.convert_to_numpy(self._hidden.variables[key])

    def _tensor(self, value: Any) -> Any:
        return keras.ops.convert_to_tensor(value)

    def _word_rows(self, ids: Any) -> Any:
        own = self._embedding_layer
        return keras.ops.take(self._hidden.variables[WORD_TABLE], ids, axis=0) if own is None else own(ids)

    def _differs(self, ids: Any, number: int) -> Any:
        return keras.ops.not_equal(ids, number)

    # Calling ------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Encode a batch.

        Args:
            inputs: Dict of tensors as `sparse_mixer.SparseMixer` takes; other keys are ignored.
            training: Use the training capacity factor and dropout. None means False.

        Returns:
            Dict of ``sequence_output`` [B, S, H], ``pooled_output`` [B, H] (without a pooler, none) and
            ``encoder_outputs``, a list.

        Raises:
            ValueError: Not a dict, missing entries, or a wrong length.
        """
        given = {
            name: keras.ops.cast(tensor, "float32" if name in FLOATS else "int32")
            for name, tensor in self._read(inputs).items()
        }
        variables, train = self._hidden.variables, bool(training)
        weights = {key: _as_it_is(variables[key]) for key in self._hidden.bridge.keys}
        trainable = {id(variable) for variable in self.trainable_variables}
        frozen = frozenset(key for key in weights if id(variables[key]) not in trainable)
        seed: Any = 0
        if train and hasattr(self, "_seeds"):
            seed = keras.random.randint((), 0, 2**31 - 1, dtype="int32", seed=self._seeds)
        blocks, losses = _OPERATIONS[keras.backend.backend()](self._hidden, given, weights, frozen, train, seed)
        for loss in losses:
            self.add_loss(loss)
        sequence = blocks[-1]
        outputs = {"sequence_output": self._cast(sequence)}
        if self._hidden.arguments.with_pooler:
            kernel, bias = (variables[f"pooler_transform/{name}"] for name in ("kernel", "bias"))
            outputs["pooled_output"] = self._cast(
                keras.ops.tanh(keras.ops.matmul(sequence[:, 0, :], kernel) + keras.ops.convert_to_tensor(bias))
            )
        outputs["encoder_outputs"] = [self._cast(block) for block in blocks]
        return outputs

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Shapes and types of what a call returns."""
        arguments = self._hidden.arguments
        batch, length = inputs["input_type_ids"].shape
        if inputs.get("dense_type_ids") is not None:
            dense = inputs["dense_type_ids"].shape[1]
            length = None if length is None or dense is None else length + dense
        if length is None and not arguments.shorter_sequences and arguments.semantics != "paper":
            length = arguments.max_sequence_length
        width, dtype = arguments.hidden_size, self.compute_dtype
        cut = arguments.output_range if arguments.semantics != "keras_strict" else None
        last = length if cut is None or length is None else min(length, cut)
        blocks = [keras.KerasTensor((batch, length, width), dtype) for _ in range(arguments.num_layers - 1)]
        blocks.append(keras.KerasTensor((batch, last, width), dtype))
        pooled = {"pooled_output": keras.KerasTensor((batch, width), dtype)} if arguments.with_pooler else {}
        return {"sequence_output": keras.KerasTensor((batch, last, width), dtype), **pooled, "encoder_outputs": blocks}

    def _cast(self, tensor: Any) -> Any:
        return keras.ops.cast(tensor, self.compute_dtype)

    # Keras --------------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[str, Any]:
        """Symbolic inputs by name."""
        return self._hidden.inputs

    def get_embedding_table(self) -> Any:
        """The variable [V, W] of the word table."""
        own: Any = self._embedding_layer
        return self._hidden.variables[WORD_TABLE] if own is None else own.embeddings

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        if save_type == "savedmodel":
            raise NotImplementedError(
                f"{self.name}: a SavedModel cannot hold a SparseMixer of this package, which runs outside TensorFlow; "
                "export what layer.to_encoder().to_tensorflow() returns"
            )
        return super()._trackable_children(save_type, **kwargs)


class _Hidden:
    """What Keras shall not take for a part of the layer's tree.

    Attributes:
        engine: With PyTorch what calls the encoder; else None.
    """

    def __init__(self, config: Mapping[str, Any], arguments: Any, bridge: Bridge) -> None:
        self.config = config
        self.arguments = arguments
        self.bridge = bridge
        self.variables: dict[str, Any] = {}
        self.engine: Any = _torch_engine(bridge) if keras.backend.backend() == "torch" else None
        self.inputs: dict[str, Any] = {}


def _with_tensorflow(
    hidden: _Hidden, given: dict[str, Any], weights: dict[str, Any], frozen: frozenset[str], training: bool, seed: Any
) -> tuple[list[Any], list[Any]]:
    """Outputs of all blocks, and losses to add."""
    import tensorflow as tf

    from sparse_mixer.keras import _tensorflow_op

    given, weights = (
        {name: tf.convert_to_tensor(tensor) for name, tensor in tensors.items()} for tensors in (given, weights)
    )
    call = _tensorflow_op.Call(given, weights, frozen, training, tf.cast(seed, tf.int64))
    outputs = _tensorflow_op.encode(hidden.bridge, call)
    return outputs.blocks, _losses(hidden.bridge, outputs.aux)


def _with_jax(
    hidden: _Hidden, given: dict[str, Any], weights: dict[str, Any], _frozen: frozenset[str], training: bool, seed: Any
) -> tuple[list[Any], list[Any]]:
    """As `_with_tensorflow`. JAX knows by itself what it differentiates."""
    import jax.numpy as jnp

    from sparse_mixer import _jax_op

    halves = jnp.stack([jnp.zeros((), "uint32"), jnp.asarray(seed, "uint32")])
    call = _jax_op.Call(hidden.bridge, tuple(given), tuple(weights), ("encoder_outputs",), training)
    outputs, aux = _jax_op.encode(call, [*given.values(), *weights.values()], halves)
    return outputs["encoder_outputs"], _losses(hidden.bridge, aux)


def _with_torch(
    hidden: _Hidden, given: dict[str, Any], weights: dict[str, Any], frozen: frozenset[str], training: bool, seed: Any
) -> tuple[list[Any], list[Any]]:
    """As `_with_tensorflow`; the losses come as their sum."""
    import torch

    from sparse_mixer.torch import _ops

    # The engine has the pooler as well; its kernel does not take part.
    every = {key: weights[key] if key in weights else _as_it_is(hidden.variables[key]) for key in hidden.engine.keys}
    wanted = [
        name
        for name, tensor in (*given.items(), *weights.items())
        if torch.is_grad_enabled() and tensor.requires_grad and name not in frozen
    ]
    call = _ops.Call(
        engine=hidden.engine,
        names=tuple(given),
        others=(),
        wanted=tuple(wanted),
        training=training,
        seed=int(seed),
        draws=False,
        outputs=("encoder_outputs",),
    )
    blocks, total, _ = _ops.encode(call, [*(tensor.contiguous() for tensor in given.values()), *every.values()])
    return blocks, [total] if hidden.bridge.num_moe_layers else []


def _torch_engine(bridge: Bridge) -> Any:
    from sparse_mixer.torch import _engine

    return _engine.Engine(bridge.encoder, owned=True)


def _losses(bridge: Bridge, aux: Any) -> list[Any]:
    return [aux[-1, position] for position in range(bridge.num_moe_layers)]


_OPERATIONS = {"tensorflow": _with_tensorflow, "jax": _with_jax, "torch": _with_torch}


def _as_it_is(variable: Any) -> Any:
    """A variable's tensor: for PyTorch its parameter itself, whose version says whether it has changed."""
    return variable.value if keras.backend.backend() == "torch" else keras.ops.convert_to_tensor(variable)


def _constant(value: Any) -> Any:
    def initialize(_shape: Any, dtype: Any = None) -> Any:
        return keras.ops.convert_to_tensor(value, dtype=dtype)

    return initialize
