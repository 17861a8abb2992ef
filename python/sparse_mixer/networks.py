"""`SparseMixer`, with the signature, calling convention and weight order of ``tfm.nlp.networks.SparseMixer``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from sparse_mixer import activations
from sparse_mixer._core import summary
from sparse_mixer._core.arguments import Arguments
from sparse_mixer._core.checks import as_bool, as_mapping
from sparse_mixer._core.construction import make_core, provider, weight_seed
from sparse_mixer._core.encoder_config import arguments_of, initializer_of_range
from sparse_mixer.activations import Activation
from sparse_mixer.checkpoints.stored_encoder import StoredEncoder
from sparse_mixer.initializers import Initializer
from sparse_mixer.layers import MixingMechanism

_name_counter = itertools.count()


class SparseMixer(StoredEncoder):
    """Sparse Mixer encoder (Lee-Thorp & Ainslie 2022, https://arxiv.org/abs/2205.12399) on the CPU.

    Each of `num_layers` blocks lets tokens exchange information (a learned linear mixing, a Fourier or Hartley
    transform, or attention), then transforms each token (a dense feed-forward layer, or a mixture of experts that
    choose their tokens). The defaults are Sparse Mixer Base; ``train_capacity_factor=0.5, eval_capacity_factor=0.5``
    is Fast Sparse Mixer. Arguments up to `export_metrics` are those of TensorFlow's class, in its order; differences
    in meaning are listed in ``docs/differences-from-tensorflow.md``. Weights exist from construction.

    An encoder may be called from several threads at once. `losses` and `aux_losses` are those of the calling thread's
    last call; calls never affect each other's results.

    Examples:
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
        initializer_range: float | None = None,
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
        relative_attention_num_buckets: int | None = None,
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
            initializer_range: Standard deviation of a truncated normal `initializer`, as the Model Garden's
                configurations have it; in the place of `initializer`.
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
            relative_attention_num_buckets: Buckets of distances for relative position biases of attention, as MPNet has
                them: an even number of at least 4. All blocks share the biases. None for no biases.
            seed: Source of initial weights, and of dropout and jitter of calls without a seed. Without one, each of
                these has a random one; see `sparse_mixer.set_random_seed`.
            num_threads: Most threads a call uses; None follows `sparse_mixer.set_num_threads`.
            isa: Instruction set to pin, one of ``sparse_mixer.cpu_info()["available"]``; None for the best.

        Raises:
            ValueError: A value that cannot work; the message names the argument.
            TypeError: A value of a wrong type.
        """
        if initializer_range is not None:
            initializer = initializer_of_range(initializer, initializer_range)
        arguments = Arguments(locals())
        chosen_seed = weight_seed(arguments)
        core = make_core(arguments, chosen_seed, provider(arguments, chosen_seed), num_threads, isa)
        arguments.warn_about_ignored_layers(stacklevel=2)
        self._assemble(arguments, core, chosen_seed, _default_name() if name is None else str(name))
        self.trainable = as_bool("trainable", trainable)

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
        return cls(**as_mapping("config", config))

    @classmethod
    def from_encoder_config(cls, config: Any, **changes: Any) -> Self:
        """Build the encoder that ``official.nlp.configs.encoders.build_encoder`` builds, with fresh weights.

        There, ``"gelu"`` stands for the tanh form; ``SparseMixer(**config.as_dict())`` reads it as Keras does.

        Args:
            config: An ``EncoderConfig`` of type ``"sparse_mixer"``, a ``SparseMixerEncoderConfig``, or a dict of such.
            **changes: Arguments of the constructor that replace those of `config`, or that it does not have.

        Raises:
            ValueError: Another type of encoder, or a value that cannot work.
            TypeError: No configuration.
        """
        return cls(**{**arguments_of(config), **changes})

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

    def as_torch_module(self) -> Any:
        """A module of PyTorch with these arguments and weights, independent of this encoder from then on.

        Raises:
            ImportError: There is no PyTorch (extra ``torch``).
        """
        from sparse_mixer import torch

        return torch.SparseMixer(self)

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


def _default_name() -> str:
    number = next(_name_counter)
    return f"sparse_mixer_{number}" if number else "sparse_mixer"
