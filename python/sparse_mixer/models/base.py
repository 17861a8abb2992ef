"""What all models share: parts, metrics, a step of training or evaluation."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np

from sparse_mixer import checkpoints
from sparse_mixer._core.checks import as_bool, as_seed
from sparse_mixer._core.inputs import InputSpec, as_inputs
from sparse_mixer._core.paths import PathLike
from sparse_mixer._core.router_metrics import METRIC_NAMES
from sparse_mixer._core.variables import Variable, assign_all
from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.checkpoints import flax, model_files
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Array, Targets
from sparse_mixer.models import summary
from sparse_mixer.models.compiled import CompiledModel
from sparse_mixer.models.criteria import Criterion, SparseCrossEntropy
from sparse_mixer.models.heads import Head
from sparse_mixer.models.row_metrics import measured
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.batches import unpack
from sparse_mixer.training.metrics import Metrics

AnyModel = TypeVar("AnyModel", bound="Model")

_STORED: dict[str, type[Model]] = {}


def stored(cls: type[AnyModel]) -> type[AnyModel]:
    """Class decorator: files may hold models of this class."""
    _STORED[cls.__name__] = cls
    return cls


class Model(CompiledModel):
    """Base of the models: an encoder, heads, a loss.

    Attributes:
        encoder: The encoder; shared, not copied.
        heads: The heads, by name.
        parts: The encoder, then the heads.
    """

    # What `get_config` returns.
    _config: Mapping[str, Any] = MappingProxyType({})
    # The loss unless the model is compiled with another one.
    _own_criterion: Criterion = SparseCrossEntropy()
    # Outputs of the encoder that the loss depends on.
    _outputs: tuple[str, ...] = ("sequence_output",)

    def __init__(self, name: str, encoder: Any, heads: Sequence[Head]) -> None:
        self.encoder = encoder
        self.heads = {head.name: head for head in heads}
        self.parts: list[Any] = [encoder, *heads]
        if len(self.heads) != len(heads):
            raise ValueError("classification_heads: expected heads of different names")
        super().__init__(name, self._variables_in_keras_order(), self.parts)

    def _variables_in_keras_order(self) -> list[Any]:
        """All variables in the order of ``get_weights`` of the reference's model."""
        return [variable for part in self.parts for variable in part.all_variables]

    def __call__(
        self, inputs: Mapping[str, Any] | Sequence[Any], *, training: bool = False, seed: int | None = None
    ) -> Any:
        """What `call` gives, which subclasses may override.

        Args:
            inputs: As in a call of the encoder, or a list of arrays: word ids, mask, type ids, then perhaps dense
                inputs, their mask and their type ids, then perhaps ``masked_lm_positions``.
            training: As there.
            seed: As there; also the source of dropout in the heads.
        """
        options: dict[str, Any] = {"training": training if training else None, "seed": seed}
        # An own `call` may take fewer arguments.
        return self.call(
            as_inputs(inputs, in_order=True), **{name: value for name, value in options.items() if value is not None}
        )

    def call(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> Any:
        """What a call gives; see the class."""
        raise NotImplementedError

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """Name, shape and type of each input of a call."""
        specs: dict[str, InputSpec] = self.encoder.inputs
        return specs

    @property
    def checkpoint_items(self) -> dict[str, Any]:
        """Parts by the names that the Model Garden gives them in checkpoints."""
        return {"encoder": self.encoder}

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Print a table of encoder, heads and layers with their parameters.

        Args:
            print_fn: Receives the text.
        """
        print_fn(summary.text(self))

    def _repr_html_(self) -> str:
        return summary.as_html(self)

    def hugging_face_names(self, kind: str) -> tuple[str, dict[str, str]]:
        """What the `transformers` package calls the same model and the weights of its heads.

        Args:
            kind: Its kind of encoder: ``"bert"``, ``"roberta"``, ``"electra"`` or ``"distilbert"``.

        Returns:
            The end of its class's name, such as ``"ForTokenClassification"``, and its names by our keys.

        Raises:
            ValueError: It has no such model.
        """
        raise ValueError(f"file_format: 'huggingface:{kind}' has no model for this {type(self).__name__}")

    def loss_divisors(self, batch: Any) -> dict[str, float]:
        """What the terms of a batch's loss are divided by.

        Gradients of several batches add up to those of one large batch if each of them is given the sums of these
        numbers over all, as `fit` does with ``accumulation_steps``.

        Args:
            batch: See `sparse_mixer.models`.

        Returns:
            ``"task"``: number of examples, of labelled tokens, or for a masked language model what the predictions
            weigh; ``"auxiliary"``: number of positions, for the router's losses; ``"head/<name>"``: number of examples,
            for each further head of a pre-trainer. And ``"weight"``: what the labels weigh altogether; if that is 0,
            there is nothing to learn.
        """
        return dict(self._targets(*unpack(batch)).divisors)

    def loss_and_gradients(
        self,
        batch: Any,
        *,
        seed: int | None = None,
        into: Gradients | None = None,
        recompute: bool = False,
        divisors: Mapping[str, float] | None = None,
    ) -> tuple[Metrics, Gradients]:
        """Differentiate the loss of one batch.

        Args:
            batch: See `sparse_mixer.models`.
            seed: Source of dropout and jitter; None as in a call of the encoder.
            into: Gradients of this model to add to; None makes new ones, which take over the memory of those that this
                thread has applied last: see `sparse_mixer.gradients.Gradients.of_a_step`.
            recompute: Less memory for more time; see `SparseMixer.vjp`.
            divisors: For a part of a larger batch: `loss_divisors` of all parts, added up. None for this batch's own.

        Returns:
            Metrics of the batch, with the losses before any update, and the gradients of the trainable weights. Metrics
            of parts add up to those of the whole, too. If the weight in `divisors` is 0, no gradient is added.

        Raises:
            FloatingPointError: The loss is NaN or infinite; what `into` then holds is unspecified.
        """
        inputs, labels, weights = unpack(batch)
        targets = self._targets(inputs, labels, weights)
        whole = targets.divisors if divisors is None else divisors
        trainable = {variable.key for variable in self.trainable_weights if isinstance(variable, Variable)}
        gradients = Gradients.of_a_step(self, trainable) if into is None else into
        drops = self._call_seed(True, seed)
        options: dict[str, Any] = {"seed": drops, "outputs": self._outputs, "recompute": recompute}
        if any(not variable.trainable for variable in self.encoder.all_variables if isinstance(variable, Variable)):
            options["wrt"] = [key for key in self.encoder.weight_keys if key in trainable]
        in_core = type(self.encoder).vjp is SparseMixer.vjp
        if in_core:
            options["in_core"] = True
        outputs, vjp = self.encoder.vjp(inputs, training=True, **options)
        learns = whole["weight"] > 0
        task, d_outputs = self._loss(outputs, targets, whole, drops, gradients if learns else None)
        share = targets.divisors["auxiliary"] / whole["auxiliary"]
        metrics = self._with_auxiliary(task, targets, share * whole["task"])
        # Without a single prediction the mean is none, but there are the auxiliary losses.
        if not math.isfinite(metrics["loss"][0]):
            raise FloatingPointError(f"the loss is {metrics['loss'][0]}")
        if learns:
            # A subclass's own `vjp` is given arrays of numpy, as anybody would give it.
            whole_gradients = d_outputs if in_core else {k: d.numpy(outputs[k].shape) for k, d in d_outputs.items()}
            vjp(whole_gradients, share, into=gradients)
        return metrics, gradients

    def test_step(self, batch: Any) -> Metrics:
        """Metrics of one batch, as at inference: no dropout, evaluation capacity."""
        inputs, labels, weights = unpack(batch)
        targets = self._targets(inputs, labels, weights)
        outputs = self.encoder(inputs, outputs=self._outputs)
        task, _ = self._loss(outputs, targets, targets.divisors, None, None)
        return self._with_auxiliary(task, targets, targets.divisors["task"])

    def _call_seed(self, training: bool | None, seed: int | None) -> int | None:
        """The seed of dropout in encoder and heads for one call; None at inference."""
        given = None if seed is None else as_seed("seed", seed)
        if training is None or not as_bool("training", training):
            return None
        return self.encoder.next_call_seed() if given is None else given

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to the parts comes from these.
        return {name: value for name, value in self.__dict__.items() if name not in ("layers", "_variables")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.layers = list(self.parts)
        self._variables = self._variables_in_keras_order()

    def load_flax_heads(self, params: PathLike | Mapping[str, Any]) -> None:
        """Replace the weights of the heads by those in a checkpoint of the paper's JAX code: all, or on failure none.

        For `BertClassifier` on the encoder's pooler, and for ``BertPretrainerV2(encoder, "gelu_tanh",
        classification_heads=[ClassificationHead(0, 2, use_encoder_pooler=True)])``; the encoder is that of
        `SparseMixer.from_flax`.

        Args:
            params: As in `SparseMixer.from_flax`.

        Raises:
            CheckpointError: The file is damaged, or its heads are not those of this model.
            ValueError: A weight has another shape.
            OSError: The file cannot be read.
        """
        variables = [variable for head in self.heads.values() for variable in head.all_variables]
        with contextlib.closing(checkpoints.open_flax(params, "params")) as file:
            arrays = flax.read_heads(file, [variable.key for variable in variables])
        assign_all(variables, arrays)

    def get_config(self) -> dict[str, Any]:
        """The arguments besides the encoder, JSON-able; without initialisers, which only matter to new weights."""
        return copy.deepcopy(dict(self._config))

    @classmethod
    def from_config(cls, encoder: Any, config: Mapping[str, Any]) -> Self:
        """A model from what `get_config` returned."""
        return cls(encoder, **config)

    def save(self, path: PathLike, *, file_format: str | None = None) -> None:
        """Write encoder and heads to a file, which is replaced in one step: a crash leaves the old file or the new one.

        `SparseMixer.load` reads the encoder alone from it.

        Args:
            path: The file. A name that ends in ``.npz`` or ``.weights.h5`` (extra ``h5``; the reference's model of the
                same arguments loads it) gets the weights alone, any other one our own format: safetensors with the
                configuration, for `load`.
            file_format: ``"safetensors"``, ``"npz"``, ``"weights_h5"`` or ``"huggingface"``, whatever the ending; the
                last is a folder that `transformers` loads (``"huggingface:roberta"`` and so on for that kind of model).

        Raises:
            ValueError: As for `SparseMixer.save`.
            OSError: The file cannot be written; the old one is untouched.
            KeyboardInterrupt: Interrupted; the old file is untouched.
        """
        model_files.save(self, path, file_format=file_format)

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build a model, with its encoder, from a file of `save`.

        Args:
            path: The file; it must hold a model of this class (of any class for ``models.Model.load``).
            num_threads: As in the encoder's constructor.
            isa: As in the encoder's constructor.
            **changes: Arguments of the encoder's constructor that replace those of the file, for example
                ``dtype="bfloat16"``.

        Raises:
            CheckpointError: The file is damaged.
            ValueError: It holds another model, or none.
            OSError: It cannot be read.
        """
        model: Self = model_files.load(cls, _STORED, SparseMixer, path, num_threads=num_threads, isa=isa, **changes)
        return model

    def load_weights(self, source: PathLike | Mapping[str, Any]) -> None:
        """Replace the weights of encoder and heads: all at once, or on failure none.

        Args:
            source: A file of `save`; a checkpoint, SavedModel, ``.weights.h5``, ``.keras`` or legacy ``.h5`` of the
                reference's model of this name; or a mapping from the names in a file of `save` to arrays: the weights'
                keys, those of the encoder behind ``encoder/``.

        Raises:
            CheckpointError: The file is damaged or does not fit; nothing has changed.
            OSError: It cannot be read.
        """
        model_files.load_weights(self, source)

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        """What a batch is compared with; shapes are checked against each other, not against the encoder's outputs."""
        raise NotImplementedError

    def _loss(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        divisors: Mapping[str, float],
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, OutputGradient]]:
        """Metrics, among them ``task_loss``, and with `into` the gradients of the encoder's outputs.

        Args:
            outputs: What the encoder gave: arrays of numpy, or in the core.
            targets: What `_targets` gave.
            divisors: What the terms of the loss are divided by; those of the batch are `targets.divisors`.
            seed: Source of dropout in the heads; None at inference.
            into: Where the heads' gradients are added.

        Returns:
            In ``task_loss`` as sum the batch's part of the loss times ``divisors["task"]``, as weight
            ``targets.divisors["task"]``: added up over all batches that share the divisors, it has the loss as mean.
        """
        raise NotImplementedError

    def _criterion(self) -> Criterion:
        """The loss: what the model is compiled with, or its own."""
        return self._own_criterion if self._compiled.criterion is None else self._compiled.criterion

    def _judged(self, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
        """Metrics of rows of logits, among them ``task_loss``, and their gradient; those that `compile` was given."""
        metrics, d_logits = self._criterion().compute(self.encoder, logits, targets, divisor)
        if self._compiled.metrics:
            metrics = Metrics(task_loss=metrics["task_loss"], **measured(self._compiled.metrics, targets, logits))
        return metrics, d_logits

    def _with_auxiliary(self, metrics: Metrics, targets: Targets, scale: float) -> Metrics:
        """Add ``loss``, what is minimised, and what there is to say about the MoE layers.

        That is the router's metrics, means over the layers; ``expert_load/<layer>/<expert>``, the sum of the
        weights of the expert's outputs, divided by that of all outputs of its layer; and ``expert_load_peak``, the
        largest of these over an even share, mean over the layers.

        Args:
            metrics: What `_loss` gave.
            targets: What it was given.
            scale: What the auxiliary losses count in the sum of ``loss``.
        """
        auxiliary = self.encoder.aux_losses
        loss, weight = metrics["task_loss"]
        values = {}
        if len(auxiliary["moe_layers"]):
            values = {name: float(np.mean(auxiliary[name])) for name in METRIC_NAMES}
            loads = auxiliary["expert_load"]
            values["expert_load_peak"] = float(np.mean(loads.max(axis=1)) * loads.shape[1])
            for layer, shares in zip(auxiliary["moe_layers"], loads, strict=True):
                values |= {f"expert_load/{layer}/{e}": float(share) for e, share in enumerate(shares)}
        # In the means, routers count a batch by its positions; everything else by its examples or predictions.
        positions = targets.divisors["auxiliary"]
        described = {name: (value * positions, positions) for name, value in values.items()}
        return Metrics({"loss": (loss + float(auxiliary["total"]) * scale, weight), **metrics, **described})
