"""`SparseMixer` as a layer of tf_keras (Keras 2), in place of ``tfm.nlp.networks.SparseMixer``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from sparse_mixer._bridge import AUX_ROWS, WORD_TABLE, InnerBridge
from sparse_mixer.keras._arguments import Given
from sparse_mixer.keras._layer import FLOATS, EncoderLayer
from sparse_mixer.keras._tensorflow_op import Call, encode
from sparse_mixer.keras._tree import BLOCK, place

_NORMS = ("_embedding_norm_layer", "_attention_layer_norm", "_output_layer_norm")


def _is_exported() -> bool:
    """Whether ``Model.export`` traces the call: it saves the graph alone, so that no layer is asked for its parts."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").startswith("tf_keras.src.export."):
            return True
        frame = frame.f_back
    return False


class _Weights(tf_keras.layers.Layer):
    """A layer that holds weights; the encoder computes with all of its layers at once."""

    def add(self, name: str, value: Any) -> None:
        """Add the variable `name` with the given initial value, as an attribute of that name."""
        setattr(self, name, self.add_weight(name=name, shape=value.shape, initializer=_constant(value)))
        self.built = True

    def call(self, *_args: Any, **_kwargs: Any) -> Any:
        """Not available by itself."""
        raise NotImplementedError(
            f"{self.name}: holds weights of a SparseMixer, which computes all its layers at once; call that, or a "
            "layer of what encoder.to_tensorflow() returns"
        )


class TransformerScaffold(_Weights):
    """The weights of one block, under the attributes of TensorFlow's layer of that name."""


class _WordEmbeddings(_Weights):
    """The word table."""

    def call(self, ids: Any) -> Any:
        """Rows of the table: integers [B, S] to float32 [B, S, W]."""
        with _full_precision():
            return tf.gather(self.embeddings, ids)


class _Router(_Weights):
    """The weights of a router, its losses and its metrics."""

    def report(self, values: Mapping[str, Any], export_metrics: bool) -> None:
        """Add the loss of a call and, if asked for, its metrics: scalars by the names of `AUX_ROWS`."""
        self.add_loss(values["loss"])
        if export_metrics:
            for name in AUX_ROWS[:-1]:
                self.add_metric(values[name], name=name)


@tf_keras.utils.register_keras_serializable(package="sparse_mixer")
class SparseMixer(EncoderLayer, tf_keras.layers.Layer):
    """A Sparse Mixer encoder as a layer of tf_keras.

    Takes the arguments of `sparse_mixer.SparseMixer`; of these `name`, `trainable` and `dtype` mean what they mean for
    every Keras layer. The layer computes in float32; under a mixed policy it casts its outputs. Called with a dict of
    tensors, like TensorFlow's class, it returns the same dict. Weights exist from construction, as variables in
    TensorFlow's order, under TensorFlow's names, and at its places in checkpoints and ``.weights.h5`` files.

    Initial weights and dropout follow ``tf_keras.utils.set_random_seed`` where no `seed` is given.

    Attributes:
        inputs: Symbolic inputs by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the layer with fresh weights; arguments as `sparse_mixer.SparseMixer`, or one `Given`."""
        given = args[0] if args and isinstance(args[0], Given) else Given.read(args, kwargs, _fresh_seed)
        super().__init__(autocast=False, **given.layer)
        self._encoder_config = _Untracked(given.config)
        self._arguments = given.arguments
        self._bridge = InnerBridge(given.config, given.num_threads, given.isa)
        with tf.init_scope():
            self._add_weights(given.values, given.embedding_layer)
        self.built = True
        self.inputs = {
            name: tf_keras.Input(shape=spec.shape[1:], dtype=spec.dtype)
            for name, spec in self._bridge.encoder.inputs.items()
        }

    # What `EncoderLayer` asks for ---------------------------------------------------------------------------------

    def _encoder_arguments(self) -> tuple[Mapping[str, Any], Any]:
        return self._encoder_config.value, self._arguments

    def _value(self, key: str) -> Any:
        return self._variables_by_key.value[key].numpy()

    def _tensor(self, value: Any) -> Any:
        return tf.convert_to_tensor(value)

    def _word_rows(self, ids: Any) -> Any:
        return self._embedding_layer(ids)

    def _differs(self, ids: Any, number: int) -> Any:
        return tf.not_equal(ids, number)

    # Calling ------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any, training: Any = None) -> dict[str, Any]:
        """Encode a batch.

        Args:
            inputs: Dict of tensors as `sparse_mixer.SparseMixer` takes; other keys are ignored.
            training: Use the training capacity factor and dropout. None means False.

        Returns:
            Dict of ``sequence_output`` [B, S, H], ``pooled_output`` [B, H] (without a pooler, none) and
            ``encoder_outputs``, a list.

        Raises:
            ValueError: Not a dict, missing entries, or a wrong length.
            NotImplementedError: Called by ``Model.export``.
        """
        if not tf.executing_eagerly() and _is_exported():
            raise NotImplementedError(self._no_saved_model())
        variables = self._variables_by_key.value
        with _full_precision():
            given = {
                name: tf.cast(tensor, tf.float32) if name in FLOATS and tensor.dtype != tf.float32 else tensor
                for name, tensor in self._read(inputs).items()
            }
            trainable = {id(variable) for variable in self.trainable_weights}
            weights = {key: tf.convert_to_tensor(variables[key]) for key in self._bridge.keys}
            frozen = frozenset(key for key in weights if id(variables[key]) not in trainable)
            train = _as_training(training)
            outputs = encode(
                self._bridge,
                Call(
                    given, weights, frozen, train, self._call_seed() if train is not False else tf.constant(0, tf.int64)
                ),
            )
            pooled = self._pooler_layer(outputs.blocks[-1][:, 0, :]) if self._arguments.with_pooler else None
        self._report(outputs.aux)
        blocks = [self._cast_output(block) for block in outputs.blocks]
        return {
            "sequence_output": blocks[-1],
            **({} if pooled is None else {"pooled_output": self._cast_output(pooled)}),
            "encoder_outputs": blocks,
        }

    def _call_seed(self) -> Any:
        """A seed for one call, from TensorFlow's generator."""
        own = self._arguments.seed if "seed" in self._encoder_config.value else None
        seed = None if own is None else own % 2**31
        return tf.random.uniform((), maxval=tf.int64.max, dtype=tf.int64, seed=seed)

    def _report(self, aux: Any) -> None:
        routers = self._routers.value
        if not routers:
            return
        values = [dict(zip(AUX_ROWS, tf.unstack(column), strict=True)) for column in tf.unstack(aux, axis=1)]
        for router, of_router in zip(routers, values, strict=True):
            router.report(of_router, self._arguments.export_metrics)

    def _cast_output(self, tensor: Any) -> Any:
        return tensor if tensor.dtype == self.compute_dtype else tf.cast(tensor, self.compute_dtype)

    # Keras --------------------------------------------------------------------------------------------------------

    def get_embedding_table(self) -> Any:
        """The variable [V, W] of the word table."""
        return self._embedding_layer.embeddings

    def get_embedding_layer(self) -> Any:
        """The layer that looks up word rows."""
        return self._embedding_layer

    @property
    def transformer_layers(self) -> list[Any]:
        """The layers that hold the blocks' weights."""
        return self._transformer_layers  # type: ignore[no-any-return]

    @property
    def pooler_layer(self) -> Any:
        """The dense layer behind ``pooled_output``."""
        return self._pooler_layer

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        if save_type == "savedmodel":
            raise NotImplementedError(self._no_saved_model())
        return super()._trackable_children(save_type, **kwargs)

    def _no_saved_model(self) -> str:
        return (
            f"{self.name}: a SavedModel cannot hold a SparseMixer of this package, which runs outside TensorFlow. "
            "Build the model around encoder.to_tensorflow(), TensorFlow's class with the same weights (with "
            "layer.to_encoder() for the encoder), and export that"
        )

    # Weights ------------------------------------------------------------------------------------------------------

    def _add_weights(self, values: Mapping[str, Any], embedding_layer: Any) -> None:
        """Make the layers that hold the weights, in the order of TensorFlow's class."""
        if embedding_layer is not None:
            self._embedding_layer = embedding_layer
        elif WORD_TABLE not in values:
            raise ValueError("weights: there is no word table")
        found, routers = {}, []
        for key, value in values.items():
            if embedding_layer is not None and key == WORD_TABLE:
                continue
            owner, _, leaf = key.rpartition("/")
            block, attributes, _ = place(key)
            with tf.name_scope(f"{self.name}/{owner}/"):
                layer: Any = self if block is None else self._block(block)
                for attribute in attributes:
                    if not hasattr(layer, attribute):
                        made = self._layer_for(attribute, owner, values)
                        setattr(layer, attribute, made)
                        if isinstance(made, _Router):
                            routers.append(made)
                    layer = getattr(layer, attribute)
                if isinstance(layer, _Weights):
                    layer.add(leaf, value)
                found[key] = getattr(layer, leaf)
        for scaffold in self._transformer_layers:
            if hasattr(scaffold, "_attention_cls"):
                scaffold._attention_layer = scaffold._attention_cls
            if hasattr(scaffold, "_feedforward_cls"):
                scaffold._feedforward_block = scaffold._feedforward_cls
        self._variables_by_key = _Untracked(found)
        self._routers = _Untracked(routers)

    def _block(self, index: int) -> Any:
        if not hasattr(self, "_transformer_layers"):
            self._transformer_layers: Any = []
        if index == len(self._transformer_layers):
            self._transformer_layers.append(TransformerScaffold(name=f"{BLOCK}{index}", dtype="float32"))
        return self._transformer_layers[index]

    def _layer_for(self, attribute: str, owner: str, values: Mapping[str, Any]) -> Any:
        """The layer that `attribute` holds; `owner` is what the keys of its weights start with."""
        name = owner.rpartition("/")[2]
        if attribute in _NORMS:
            gamma, beta = values[f"{owner}/gamma"], values[f"{owner}/beta"]
            norm = tf_keras.layers.LayerNormalization(
                epsilon=1e-12,
                name=name,
                dtype="float32",
                gamma_initializer=_constant(gamma),
                beta_initializer=_constant(beta),
            )
            norm.build([None, None, len(gamma)])
            return norm
        if attribute == "_pooler_layer":
            kernel, bias = values[f"{owner}/kernel"], values[f"{owner}/bias"]
            pooler = tf_keras.layers.Dense(
                len(bias),
                activation="tanh",
                name=name,
                dtype="float32",
                kernel_initializer=_constant(kernel),
                bias_initializer=_constant(bias),
            )
            pooler.build([None, len(kernel)])
            return pooler
        if attribute == "_embedding_layer":
            return _WordEmbeddings(name=name, dtype=self.dtype_policy, autocast=False)
        if attribute == "_router":
            return _Router(name="router", dtype="float32")
        return _Weights(name=_NAMES.get(attribute, name), dtype="float32")


class _Untracked:
    """Keeps Keras from taking what an attribute holds for a part of the layer's tree."""

    def __init__(self, value: Any) -> None:
        self.value = value


# Names of layers that hold layers; the others are called what their weights' names say.
_NAMES = {"_attention_cls": "self_attention", "_feedforward_cls": "moe", "_experts": "experts"}


def _constant(value: Any) -> Callable[..., Any]:
    def initialize(_shape: Any, dtype: Any = None, **_kwargs: Any) -> Any:
        return tf.constant(value, dtype=dtype)

    return initialize


def _fresh_seed() -> int:
    """A seed from TensorFlow's generator, which ``tf_keras.utils.set_random_seed`` sets."""
    with tf.init_scope():
        return int(tf.random.uniform((), maxval=tf.int64.max, dtype=tf.int64))


def _as_training(training: Any) -> Any:
    """The flag as a bool, or as a tensor where its value is not known yet."""
    if training is None:
        return False
    if tf.is_tensor(training) and not hasattr(training, "numpy"):
        return tf.cast(training, tf.bool)
    return bool(training)


def _full_precision() -> contextlib.AbstractContextManager[Any]:
    """Reading variables as they are, where a mixed policy would cast them."""
    from tf_keras.src.mixed_precision import autocast_variable  # what it is made of is in no public module

    reading: contextlib.AbstractContextManager[Any] = autocast_variable.enable_auto_cast_variables(None)
    return reading
