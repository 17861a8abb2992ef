"""`SparseMixer`, with the signature, calling convention and weight order of ``tfm.nlp.networks.SparseMixer``."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native, activations, checkpoints
from sparse_mixer._core import inputs as model_inputs
from sparse_mixer._core import summary
from sparse_mixer._core.arguments import Arguments
from sparse_mixer._core.checks import as_bool, as_seed, as_strings
from sparse_mixer._core.construction import make_core, provider, weight_seed
from sparse_mixer._core.encoder import Encoder, OutputsWithoutPooler
from sparse_mixer._core.paths import PathLike
from sparse_mixer._core.variables import Variable
from sparse_mixer._core.vjp import VJP, requested
from sparse_mixer.activations import Activation
from sparse_mixer.initializers import Initializer
from sparse_mixer.layers import MixingMechanism

Array = npt.NDArray[np.float32]

_OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")
_name_counter = itertools.count()


class SparseMixer(Encoder):
    """Sparse Mixer encoder (Lee-Thorp & Ainslie 2022, https://arxiv.org/abs/2205.12399) on the CPU.

    Each of `num_layers` blocks lets tokens exchange information (a learned linear mixing, a Fourier or Hartley
    transform, or attention), then transforms each token (a dense feed-forward layer, or a mixture of experts that
    choose their tokens). The defaults are Sparse Mixer Base; ``train_capacity_factor=0.5, eval_capacity_factor=0.5``
    is Fast Sparse Mixer. Arguments up to `export_metrics` are those of TensorFlow's class, in its order; differences
    in meaning are listed in ``docs/differences-from-tensorflow.md``. Weights exist from construction.

    An encoder may be called from several threads at once. `losses` and `aux_losses` are those of the calling thread's
    last call; calls never affect each other's results.

    Example:
        >>> import numpy as np
        >>> encoder = SparseMixer(100, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, seed=0)
        >>> ids = np.zeros((4, 8), np.int32)
        >>> outputs = encoder(dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=ids))
        >>> outputs["sequence_output"].shape, outputs["pooled_output"].shape
        ((4, 8, 16), (4, 16))
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 512,
        num_layers: int = 14,
        moe_layers: Sequence[int] = (5, 6, 7, 8),
        attention_layers: Sequence[int] = (10, 11, 12, 13),
        num_experts: int = 16,
        train_capacity_factor: float = 1.0,
        eval_capacity_factor: float = 1.0,
        examples_per_group: float | None = None,
        mixing_mechanism: MixingMechanism | str = MixingMechanism.LINEAR,
        use_fft: bool = False,
        num_attention_heads: int = 8,
        max_sequence_length: int = 512,
        type_vocab_size: int = 16,
        inner_dim: int = 2048,
        inner_activation: str | Mapping[str, Any] | Activation | Callable[..., Any] | None = activations.DEFAULT,
        output_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        initializer: str | Mapping[str, Any] | Initializer | Callable[..., Any] | None = None,
        output_range: int | None = None,
        embedding_width: int | None = None,
        embedding_layer: Callable[[Any], Any] | None = None,
        norm_first: bool = False,
        with_dense_inputs: bool = False,
        export_metrics: bool = True,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        max_group_size: int | None = None,
        router_z_loss_weight: float | None = None,
        jitter_noise: float = 0.0,
        semantics: str = "keras",
        pad_id: int | None = None,
        moe_residual: bool | None = None,
        project_embeddings: bool | None = None,
        shorter_sequences: bool | None = None,
        layer_norm_epsilon: float = 1e-12,
        with_pooler: bool = True,
        min_expert_capacity: int | None = None,
        expert_inner_dim: int | None = None,
        expert_dropout: float | None = None,
        router: str = "experts_choose",
        num_selected_experts: int = 1,
        batch_prioritized_routing: bool = True,
        auxiliary_loss_factor: float = 0.01,
        router_dtype: str = "float32",
        group_mixup: bool = False,
        seed: int | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Build an encoder with fresh weights.

        Args:
            vocab_size: Number of word ids.
            hidden_size: Width of the stream between blocks; a multiple of `num_attention_heads`.
            num_layers: Number of blocks, at least 1.
            moe_layers: Indices of the blocks with a mixture of experts. Indices that name no block are ignored.
            attention_layers: Indices of the blocks with attention; all others mix by `mixing_mechanism`.
            num_experts: Experts per mixture.
            train_capacity_factor: With ``training=True`` each expert takes
                ``round(factor * tokens_per_group / num_experts)`` tokens, halves rounded to even.
            eval_capacity_factor: The same for inference.
            examples_per_group: Examples whose tokens compete for the experts' capacity; may be a fraction. None for 1,
                unless `max_group_size` says otherwise.
            mixing_mechanism: A `MixingMechanism`, its value, or TensorFlow's enum member.
            use_fft: Whether spectral mixing uses an FFT or products with transform matrices; same function.
            num_attention_heads: Heads of the attention blocks.
            max_sequence_length: The one sequence length that the encoder takes; the largest with
                `shorter_sequences`.
            type_vocab_size: Number of type ids.
            inner_dim: Width inside feed-forward layers and experts.
            inner_activation: Activation there; see `sparse_mixer.activations`.
            output_dropout: Dropout rate of embeddings, sublayer outputs and experts, when training.
            attention_dropout: Dropout rate of attention probabilities, when training.
            initializer: Initialiser of tables and kernels; see `sparse_mixer.initializers`. None for a truncated normal
                distribution with standard deviation 0.02; with ``semantics="paper"`` for a normal one, and a LeCun
                normal one in the projection of the embeddings.
            output_range: Positions ``[0, output_range)`` of the last block that are wanted; None for all.
            embedding_width: Width of the embeddings; None for `hidden_size`, otherwise they are projected to it.
            embedding_layer: Own word embeddings: a callable from ids ``[B, S]`` to floats
                ``[B, S, embedding_width]``. Its `weights`, where it has such, come first among the encoder's.
            norm_first: Normalise the inputs of sublayers rather than their outputs.
            with_dense_inputs: Whether `inputs` lists the dense inputs; they are accepted either way.
            export_metrics: Whether `metrics` lists the router metrics.
            name: Prefix of the variables' names; by default ``sparse_mixer``, ``sparse_mixer_1``, ...
            dtype: Storage type of the weights and input type of matrix products: ``"float32"``, ``"bfloat16"``,
                ``"float16"``, ``"int8"``, or a Keras policy. Outputs are always float32.
            trainable: Whether optimisers may change the weights.
            max_group_size: Alternative to `examples_per_group`: about the largest number of tokens per group, as the
                reference's documentation describes it. None for no such size, or 4096 with ``semantics="paper"`` unless
                `examples_per_group` is given.
            router_z_loss_weight: Factor of the router z-loss in `losses`; None for 0, or 1e-4 with
                ``semantics="paper"``.
            jitter_noise: Router inputs are multiplied by numbers from ``[1 - noise, 1 + noise]`` when training.
            semantics: ``"keras"``; ``"keras_strict"`` to drop what TensorFlow silently drops; or ``"paper"`` for the
                paper's JAX encoder, as ``docs/paper-semantics.md`` describes it. It decides all that follows below as
                None.
            pad_id: Word id of padding. If there is one, real tokens attend to real tokens, padding attends evenly to
                everything, and `input_mask` may be left out. None for none, or 0 with ``semantics="paper"``; -1 for
                an id that does not occur.
            moe_residual: Whether post-norm mixtures of experts have a residual and a layer norm, as dense layers do.
                None for False, or True with ``semantics="paper"``.
            project_embeddings: Whether embeddings are projected even if their width is `hidden_size`, with dropout
                after the projection and not before. None for False, or True with ``semantics="paper"``.
            shorter_sequences: Whether calls may have fewer positions than `max_sequence_length`, which is possible
                without mixing weights that belong to a length. Where all blocks attend and none has experts, results
                are those of padded and masked sequences, to the bit. None for False, or where possible with
                ``semantics="paper"``.
            layer_norm_epsilon: What layer norms add to the variance.
            with_pooler: Whether there is a pooler, and so ``pooled_output``.
            min_expert_capacity: The fewest tokens that an expert takes of a group. None for 0, or 4 with
                ``semantics="paper"``.
            expert_inner_dim: Width inside experts; None for `inner_dim`.
            expert_dropout: Dropout rate of experts' outputs; None for `output_dropout`.
            router: ``"experts_choose"`` or ``"tokens_choose"``: whether experts take their most probable tokens, or
                tokens go to their most probable experts while these have room.
            num_selected_experts: Experts that each token asks for, where tokens choose.
            batch_prioritized_routing: Where tokens choose, whether the most decided tokens are served first, instead
                of the first ones.
            auxiliary_loss_factor: Factor of the load-balancing loss in `losses`, where tokens choose.
            router_dtype: ``"float32"``, or ``"bfloat16"`` to round every intermediate result of the router as the JAX
                code does.
            group_mixup: With several routing groups, use the expert parameters that the JAX code uses by mistake.
            seed: Source of initial weights, and of dropout and jitter of calls without a seed. Without one, each of
                these has a random one; see `sparse_mixer.set_random_seed`.
            num_threads: Most threads a call uses; None follows `sparse_mixer.set_num_threads`.
            isa: Instruction set to pin, one of ``sparse_mixer.cpu_info()["available"]``; None for the best.

        Raises:
            ValueError: A value that cannot work; the message names the argument.
            TypeError: A value of a wrong type.
        """
        arguments = Arguments(locals())
        chosen_seed = weight_seed(arguments)
        core = make_core(arguments, chosen_seed, provider(arguments, chosen_seed), num_threads, isa)
        arguments.warn_about_ignored_layers(stacklevel=2)
        self._assemble(arguments, core, chosen_seed, _default_name() if name is None else str(name))
        self.trainable = as_bool("trainable", trainable)

    # Calling ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        training: bool | None = None,
        seed: int | None = None,
        outputs: Sequence[str] = _OUTPUTS,
        check_finite: bool = False,
    ) -> dict[str, Any]:
        """Encode a batch.

        Args:
            inputs: Dict of array-likes; B examples of S = `max_sequence_length` positions, or fewer with
                `shorter_sequences`.

                * ``input_word_ids``: integers [B, S] in ``[0, vocab_size)``.
                * ``input_mask``: numbers [B, S]; 1 where attention may look, 0 at padding. Only attention uses it.
                  With a `pad_id` it may be left out, and where it is 0 is padding.
                * ``input_type_ids``: integers [B, S] in ``[0, type_vocab_size)``.
                * ``input_word_embeddings``: floats [B, S, embedding_width]; replaces the word ids.
                * ``dense_inputs``, ``dense_mask``, ``dense_type_ids``: floats [B, M, embedding_width], mask and
                  types [B, M], put after the others, which then have S - M positions.

                Other keys are ignored.
            training: Use the training capacity factor, dropout and router jitter. None means False.
            seed: Source of dropout and jitter of this call. None takes the next one of the encoder's own sequence, or
                a fresh one if the encoder has no seed.
            outputs: Names of the wanted outputs; what none of them needs is not computed. Besides the three below,
                ``"routing"`` gives for each MoE block a dict of ``indices`` int32 [G, E, C] (chosen tokens, -1 in
                empty slots) and ``probabilities`` float32 [G, T, E].
            check_finite: Raise ValueError naming the first block whose output is not finite.

        Returns:
            Dict with the entries named by `outputs`, float32:

            * ``sequence_output`` [B, S, H], output of the last block (``[B, output_range, H]`` if that is set),
            * ``pooled_output`` [B, H], a dense layer with tanh on its first position; not among the default outputs
              of an encoder without a pooler,
            * ``encoder_outputs``, list of the output of every block.

        Raises:
            ValueError: Missing or ill-shaped inputs, ids outside their vocabulary, NaN or infinite embeddings.
            TypeError: Inputs of a wrong type.
            KeyboardInterrupt: Interrupted; the encoder is unchanged.
        """
        options: dict[str, Any] = {
            "training": training,
            "seed": seed,
            "outputs": outputs,
            "check_finite": check_finite,
        }
        if type(self).call is not SparseMixer.call:
            # A subclass's own may take fewer arguments: it gets those that are not at their defaults.
            defaults = {"training": None, "seed": None, "outputs": _OUTPUTS, "check_finite": False}
            options = {name: value for name, value in options.items() if value is not defaults[name]}
        return self.call(inputs, **options)

    def call(
        self,
        inputs: Mapping[str, Any],
        *,
        training: bool | None = None,
        seed: int | None = None,
        outputs: Sequence[str] = _OUTPUTS,
        check_finite: bool = False,
    ) -> dict[str, Any]:
        """What a call computes; subclasses may override it, and `__call__` calls it. Arguments as there."""
        arrays = self._read(inputs)
        options = self._call_options(training, seed, outputs, check_finite)
        results, aux = self.core.forward(**arrays._asdict(), **options)
        self._remember(aux, stacklevel=5)
        return results if self.arguments.with_pooler else OutputsWithoutPooler(results)

    def vjp(
        self,
        inputs: Mapping[str, Any],
        *,
        training: bool = True,
        seed: int | None = None,
        outputs: Sequence[str] = _OUTPUTS,
        check_finite: bool = False,
        recompute: bool = False,
        persistent: bool = False,
        wrt: Sequence[str | Variable] | None = None,
    ) -> tuple[dict[str, Any], VJP]:
        """Encode a batch and prepare to differentiate.

        Example:
            >>> import numpy as np
            >>> encoder = SparseMixer(100, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, seed=0)
            >>> ids = np.zeros((4, 8), np.int32)
            >>> inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=ids)
            >>> outputs, vjp = encoder.vjp(inputs, seed=1)
            >>> grads = vjp({"pooled_output": np.ones((4, 16), np.float32)})
            >>> grads["word_embeddings/embeddings"].shape
            (100, 16)

        Args:
            inputs: As in a call; at least one example.
            training: As in a call, but True by default.
            seed: As in a call.
            outputs: As in a call. Gradients may be given for all outputs whatever is named here.
            check_finite: As in a call.
            recompute: Keep only what each block reads and compute the blocks again when differentiating: less memory,
                more time, the same bits.
            persistent: Keep what the forward pass kept after the first use, too, for further ones.
            wrt: What to differentiate with respect to: keys of weights, variables, ``"input_word_embeddings"``,
                ``"dense_inputs"``; None for all of them. Nothing is kept or computed for the others, and the backward
                pass ends at the lowest layer that has one of these. Keras's choice is `trainable_weights`.

        Returns:
            The outputs, and a function from their gradients to those of the weights, for one use; see `VJP`.

        Raises:
            ValueError, TypeError, KeyboardInterrupt: As a call.
            ValueError: `wrt` names something that there is not.
            TypeError: A subclass overrides `call` and not this.
        """
        if type(self).call is not SparseMixer.call and type(self).vjp is SparseMixer.vjp:
            kind = type(self).__name__
            raise TypeError(f"vjp: {kind} overrides call, which cannot be differentiated here; override vjp, too")
        arrays = self._read(inputs)
        options = self._call_options(training, seed, outputs, check_finite)
        options["recompute"] = as_bool("recompute", recompute)
        options["persistent"] = as_bool("persistent", persistent)
        chosen = requested(wrt, self, arrays)
        results, aux, tape = _native.record(self.core, **arrays._asdict(), **options, wrt=(chosen.weights, chosen.rows))
        self._remember(aux, stacklevel=4)
        if not self.arguments.with_pooler:
            results = OutputsWithoutPooler(results)
        return results, VJP(self, tape, arrays, chosen)

    def _read(self, inputs: Mapping[str, Any]) -> model_inputs.Inputs:
        return model_inputs.read(
            inputs,
            needs_mask=self._needs_mask,
            embedding_layer=self.arguments.embedding_layer,
            pad_id=self.arguments.padding_id(),
        )

    def _call_options(
        self, training: bool | None, seed: int | None, outputs: Sequence[str], check_finite: bool
    ) -> dict[str, Any]:
        """The keywords of a call as the core takes them."""
        train = False if training is None else as_bool("training", training)
        if outputs is _OUTPUTS and not self.arguments.with_pooler:
            outputs = [name for name in _OUTPUTS if name != "pooled_output"]
        return {
            "training": train,
            "seed": self._call_seed(train, seed),
            "outputs": as_strings("outputs", outputs, "names"),
            "check_finite": as_bool("check_finite", check_finite),
        }

    def _remember(self, aux: dict[str, Any], stacklevel: int) -> None:
        """Keep a call's auxiliary values for `losses`, `aux_losses` and `metrics`."""
        self._last.aux = aux
        self._metrics.update(aux)
        _warn_of_zero_capacity(aux, stacklevel)

    def _call_seed(self, training: bool, seed: int | None) -> int:
        if seed is not None:
            return as_seed("seed", seed)
        return self.next_call_seed() if training else 0

    @property
    def inputs(self) -> dict[str, model_inputs.InputSpec]:
        """Name, shape and type of each input; three entries, or six with `with_dense_inputs`."""
        a = self.arguments
        return model_inputs.specs(a.max_sequence_length, a.width(), a.with_dense_inputs)

    @property
    def aux_losses(self) -> dict[str, Any]:
        """Auxiliary values of this thread's last call; empty before the first.

        float32 arrays [num_moe_layers] under the names of the metrics, ``total`` (scalar to add to a training loss:
        `router_z_loss`, and `load_balancing_loss` times `auxiliary_loss_factor`, over all layers), ``expert_load``
        [num_moe_layers, num_experts] (the sum of the weights of each expert's outputs, divided by that of all outputs
        of the layer) and ``moe_layers`` (indices of the layers).
        """
        return {name: array.copy() for name, array in getattr(self._last, "aux", {}).items()}

    @property
    def losses(self) -> list[np.float32]:
        """Weighted auxiliary losses of each MoE layer in this thread's last call; empty before the first."""
        aux = getattr(self._last, "aux", None)
        if aux is None:
            return []
        return list(
            aux["router_z_loss"] + np.float32(self.arguments.auxiliary_loss_factor) * aux["load_balancing_loss"]
        )

    # Configuration ------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The arguments as a dict for `from_config`: TensorFlow's keys in its order, then extensions in use.

        JSON-able, unless the activation, initialiser or embedding layer is a Python callable. Name, weights and
        threads are not in it.
        """
        return self.arguments.keras_config()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an encoder with fresh weights.

        Args:
            config: What `get_config` returned, here or in TensorFlow, possibly after a trip through JSON.
        """
        return cls(**config)

    def as_keras_layer(
        self,
        framework: str | None = None,
        *,
        name: str | None = None,
        trainable: bool | None = None,
        dtype: Any = None,
    ) -> Any:
        """A Keras layer with these arguments and weights, independent of this encoder from then on.

        Args:
            framework: ``"tf_keras"`` or ``"keras"`` (Keras 3); None for the one in use, see `sparse_mixer.keras`.
            name: The layer's name; None for Keras's choice.
            trainable: Whether the layer trains; None for this encoder's.
            dtype: Keras's policy for the layer, which computes in float32 and casts its outputs.

        Raises:
            ImportError: There is no Keras.
        """
        from sparse_mixer import keras

        return keras.layer_class(framework).from_encoder(self, name=name, trainable=trainable, dtype=dtype)

    def to_tensorflow(self, *, name: str | None = None) -> Any:
        """``tfm.nlp.networks.SparseMixer`` itself, with these arguments and weights; needs tf-models-official.

        For what a layer that runs outside TensorFlow cannot do: SavedModels, XLA, gradients of gradients.

        Args:
            name: The layer's name; None for Keras's choice.

        Raises:
            ImportError: tf-models-official is not installed.
            ValueError: TensorFlow's class lacks something that this encoder uses.
        """
        from sparse_mixer.keras import reference

        return reference.build(self, name)

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Print a table of the layers with their parameters and operations, and the memory needed.

        Args:
            print_fn: Receives the text.
        """
        print_fn(summary.text(self))

    def __repr__(self) -> str:
        return summary.one_line(self)

    def _repr_html_(self) -> str:
        return summary.as_html(self)

    # Files --------------------------------------------------------------------------------------------------------

    def save(self, path: PathLike, *, file_format: str | None = None) -> None:
        """Write the encoder to a file, which is replaced in one step: a crash leaves the old file or the new one.

        Args:
            path: The file. Its ending chooses the format: ``.npz`` and ``.weights.h5`` hold the weights alone
                (TensorFlow's `load_weights` reads the latter, for the model
                ``tf_keras.Model(net.inputs, net(net.inputs))``; needs the extra ``h5``), any other name is our own
                format: safetensors with the configuration, for `load`.
            file_format: ``"safetensors"``, ``"npz"`` or ``"weights_h5"``, whatever the ending; or ``"huggingface"``
                for a folder at `path` that `transformers` loads, of an encoder that is a BERT, ELECTRA or FNet.

        Weights are written as float32; `load` restores the `dtype` that the encoder has.

        Raises:
            ValueError: The configuration holds a Python callable, or the ending is that of an unsupported format.
            OSError: The file cannot be written; the old one is untouched.
            KeyboardInterrupt: Interrupted; the old file is untouched.
        """
        checkpoints.save(self, path, file_format=file_format)

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        config: Mapping[str, Any] | None = None,
        prefix: str | None = None,
        strict: bool = True,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder from a file.

        Args:
            path: A file of `save`, a folder of a Hugging Face BERT, RoBERTa, ELECTRA, DistilBERT or FNet, or with
                `config` anything that `load_weights` reads. A folder without a pooler makes an encoder without one.
            config: Arguments of the constructor, for files that hold weights alone.
            prefix: Where in the file the encoder is, if there are several.
            strict: Whether every weight must be there. Otherwise those that are not are initialised; `loaded_from`
                names them.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of the file, for example
                ``dtype="bfloat16"``. A smaller `max_sequence_length` takes the first positions, a smaller
                `num_layers` the first layers, and ``with_pooler=False`` leaves out the pooler.

        Raises:
            CheckpointError: The file is damaged, or its weights do not fit its configuration; the message names file
                and weights.
            ValueError: There is no configuration.
            OSError: The file cannot be read.
        """
        options: Any = {"prefix": prefix, "strict": strict, "num_threads": num_threads, "isa": isa}
        return checkpoints.load(cls, path, config=config, **options, **changes)

    @classmethod
    def from_flax(
        cls,
        params: PathLike | Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        prefix: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder from a checkpoint of the paper's JAX code, with ``semantics="paper"``. JAX is not needed.

        Args:
            params: The folder of a checkpoint (``replicated_checkpoint_<step>``, and for models with experts one
                ``shard-<p>-of-<P>_checkpoint_<step>`` per host; the latest complete step is taken), a file of such,
                or the parameters: a mapping of slash paths such as ``"encoder/embedder/word/embedding"`` to arrays,
                or nested mappings. Heads and optimiser state beside the encoder are passed over.
            config: Keys of the JAX code's configuration: ``model_arch``, ``d_model``, ``moe_layout``, ``pad_id``, ...
                Missing ones have the JAX code's defaults; ``vocab_size`` is that of the word table. Keys that do
                not belong to the encoder (training, data) are ignored; `ignored_config_keys` has them.
            prefix: Where among the parameters the encoder is, if there are several.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of `config`, for example
                ``router_dtype="bfloat16"`` or ``group_mixup=True`` to follow the JAX code exactly.

        Raises:
            CheckpointError: Files are damaged or incomplete, or the weights do not fit `config`.
            ValueError: A name in `config` is unknown, or ``pad_id`` is missing where there is attention.
            OSError: Files cannot be read.
        """
        return checkpoints.from_flax(cls, params, config, prefix=prefix, num_threads=num_threads, isa=isa, **changes)

    @classmethod
    def from_preset(
        cls,
        name: str,
        weights: PathLike | Mapping[str, Any] | None = None,
        *,
        prefix: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder with a published configuration. Nothing is downloaded: weights come from a file you have.

        Example:
            >>> sizes = dict(vocab_size=100, hidden_size=64, inner_dim=128)
            >>> encoder = SparseMixer.from_preset("sparse_mixer_small", **sizes, seed=0)
            >>> encoder.summary(lambda text: print(text.splitlines()[-1].split(":")[0]))
            Preset 'sparse_mixer_small' is a configuration without weights

        Args:
            name: One of ``"sparse_mixer_base"``, ``"fast_sparse_mixer_base"`` (half the expert capacity),
                ``"sparse_mixer_small"``, ``"fast_sparse_mixer_small"`` (8 layers), ``"bert_base"`` and
                ``"fnet_base"``. All have ``semantics="paper"``, 512 positions and 4 type ids.
            weights: What `load_weights` reads; None stands for random weights.
            prefix: Where in the file the encoder is, if there are several.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of the preset. Set `pad_id` to the tokenizer's;
                the preset has 0. Without `vocab_size` it is that of the file, or 32,000.

        Raises:
            ValueError: An unknown name.
            CheckpointError: The file is damaged, or its weights do not fit.
            OSError: The file cannot be read.
        """
        return checkpoints.from_preset(cls, name, weights, prefix=prefix, num_threads=num_threads, isa=isa, **changes)

    def load_weights(
        self,
        source: PathLike | Mapping[str, Any],
        *,
        strict: bool = True,
        prefix: str | None = None,
    ) -> checkpoints.LoadReport:
        """Replace the weights by those of a file: all at once, or on failure none.

        The encoder is found inside larger models (classifiers, pre-training models) by its weights' names. Neither
        TensorFlow nor JAX is needed.

        Args:
            source: One of

                * a file of `save` or another safetensors or ``.npz`` file with Keras names,
                * a TensorFlow checkpoint (prefix, ``.index`` file or folder) or SavedModel folder,
                * a Keras ``.weights.h5``, legacy ``.h5`` or ``.keras`` file (extra ``h5``),
                * a Flax msgpack file, or the folder of a training step with its shards,
                * a folder or safetensors file of Hugging Face's BERT or FNet,
                * a mapping of names, in any of these schemes, to arrays.
            strict: Whether every weight must be there, and nothing else below the encoder's place in the file.
            prefix: Where in the file the encoder is, if there are several.

        Returns:
            What was loaded from where, and with ``strict=False`` what was not.

        Raises:
            CheckpointError: The file is damaged or does not fit; nothing has changed.
            OSError: The file cannot be read.
        """
        return checkpoints.load_weights(self, source, strict=strict, prefix=prefix)

    def load_report(self, source: PathLike | Mapping[str, Any], *, prefix: str | None = None) -> checkpoints.LoadReport:
        """What `load_weights` would load and what does not fit; reads no weight and changes nothing.

        Args:
            source: As in `load_weights`.
            prefix: As in `load_weights`.
        """
        return checkpoints.load_report(self, source, prefix=prefix)


def _default_name() -> str:
    number = next(_name_counter)
    return f"sparse_mixer_{number}" if number else "sparse_mixer"


def _warn_of_zero_capacity(aux: Mapping[str, Any], stacklevel: int) -> None:
    # Infinite where experts choose, as in TensorFlow.
    if (aux["fraction_tokens_left_behind"] >= 1).any():
        warnings.warn(
            "the expert capacity rounds to 0: MoE layers pass no token to any expert; raise the capacity factor",
            UserWarning,
            stacklevel=stacklevel,
        )
