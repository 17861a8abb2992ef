"""What an encoder computes: outputs, gradients, auxiliary losses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mixer import _native
from sparse_mixer._core import inputs as model_inputs
from sparse_mixer._core.block_outputs import BlockOutputs
from sparse_mixer._core.checks import as_bool, as_seed, as_strings
from sparse_mixer._core.encoder import Encoder, OutputsWithoutPooler
from sparse_mixer._core.variables import Variable
from sparse_mixer._core.vjp import VJP, requested

_OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")


class CalledEncoder(Encoder):
    """An encoder that can be called and differentiated; base of `SparseMixer`."""

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
        if type(self).call is not CalledEncoder.call:
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
        results, aux = self.forward(inputs, training=training, seed=seed, outputs=outputs, check_finite=check_finite)
        self._remember(aux, stacklevel=5)
        return results

    def forward(
        self,
        inputs: Mapping[str, Any],
        *,
        training: bool | None = None,
        seed: int | None = None,
        outputs: Sequence[str] = _OUTPUTS,
        check_finite: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Outputs and auxiliary values together, for callers that cannot rely on what a thread called last.

        Adapters to other frameworks stand on this, `vjp` and `weights_version`. Nothing is remembered: `losses`,
        `aux_losses` and `metrics` stay as they are.

        Args:
            inputs: As in a call.
            training: As there.
            seed: As there.
            outputs: As there.
            check_finite: As there.

        Returns:
            The outputs, as a call gives them, and what `aux_losses` has after one.

        Raises:
            ValueError, TypeError, KeyboardInterrupt: As a call.
        """
        arrays = self._read(inputs)
        options = self._call_options(training, seed, outputs, check_finite)
        results, aux = self.core.forward(**arrays._asdict(), **options)
        return (results if self.arguments.with_pooler else OutputsWithoutPooler(results)), aux

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
        in_core: bool = False,
    ) -> tuple[dict[str, Any], VJP]:
        """Encode a batch and prepare to differentiate.

        Examples:
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
            outputs: As in a call. Gradients may be given for all outputs whatever is named here. Where nothing is
                named, ``encoder_outputs`` is a sequence that copies the output of a block when it is read, which has to
                be before the VJP is called; named here, it is a list of arrays.
            check_finite: As in a call.
            recompute: Keep only what each block reads and compute the blocks again when differentiating: less memory,
                more time, the same bits.
            persistent: Keep what the forward pass kept after the first use, too, for further ones.
            wrt: What to differentiate with respect to: keys of weights, variables, ``"input_word_embeddings"``,
                ``"dense_inputs"``; None for all of them. Nothing is kept or computed for the others, and the backward
                pass ends at the lowest layer that has one of these. Keras's choice is `trainable_weights`.
            in_core: Give sequence and pooled output, and no others, as arrays of the core, which heads take without a
                copy.

        Returns:
            The outputs, and a function from their gradients to those of the weights, for one use; see `VJP`.

        Raises:
            ValueError, TypeError, KeyboardInterrupt: As a call.
            ValueError: `wrt` names something that there is not.
            TypeError: A subclass overrides `call` and not this.
        """
        if type(self).call is not CalledEncoder.call and type(self).vjp is CalledEncoder.vjp:
            kind = type(self).__name__
            raise TypeError(f"vjp: {kind} overrides call, which cannot be differentiated here; override vjp, too")
        arrays = self._read(inputs)
        options = self._call_options(training, seed, outputs, check_finite)
        options["recompute"] = as_bool("recompute", recompute)
        options["persistent"] = as_bool("persistent", persistent)
        chosen = requested(wrt, self, arrays)
        # The record keeps what all blocks have given, if backward goes through all of them.
        reads_blocks = outputs is _OUTPUTS and wrt is None and not in_core
        if reads_blocks:
            options["outputs"] = [name for name in options["outputs"] if name != "encoder_outputs"]
        results, aux, tape = _native.record(
            self.core,
            **arrays._asdict(),
            **options,
            wrt=(chosen.weights, chosen.rows),
            in_core=as_bool("in_core", in_core),
        )
        self._remember(aux, stacklevel=4)
        if reads_blocks:
            results["encoder_outputs"] = BlockOutputs(tape, self.arguments.num_layers)
        if not self.arguments.with_pooler:
            results = OutputsWithoutPooler(results)
        return results, VJP(self, tape, arrays, chosen, {name: array.copy() for name, array in aux.items()})

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


def _warn_of_zero_capacity(aux: Mapping[str, Any], stacklevel: int) -> None:
    # Infinite where experts choose, as in TensorFlow.
    if (aux["fraction_tokens_left_behind"] >= 1).any():
        warnings.warn(
            "the expert capacity rounds to 0: MoE layers pass no token to any expert; raise the capacity factor",
            UserWarning,
            stacklevel=stacklevel,
        )
