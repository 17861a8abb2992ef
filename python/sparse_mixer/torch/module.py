"""`SparseMixer` as a module of PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sparse_mixer import networks
from sparse_mixer._core.checks import as_seed, as_strings
from sparse_mixer._core.inputs import KEYS, as_inputs
from sparse_mixer._core.variables import Variable
from sparse_mixer.torch._engine import Engine
from sparse_mixer.torch._ops import Call, draw_seed, encode

_OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")
_WITHOUT_POOLER = ("sequence_output", "encoder_outputs")
_FLOATS = ("input_mask", "input_word_embeddings", "dense_inputs", "dense_mask")
_DIFFERENTIABLE = ("input_word_embeddings", "dense_inputs")
_SIGNATURE = inspect.signature(networks.SparseMixer)


class Weights(torch.nn.Module):
    """Holds the parameters of a part of the encoder, under TensorFlow's names. It computes nothing by itself."""

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: the encoder runs as a whole.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("SparseMixer: its parts cannot be called by themselves, only the whole module")

    def extra_repr(self) -> str:
        """Names and shapes of the parameters."""
        return ", ".join(f"{name} {list(parameter.shape)}" for name, parameter in self._parameters.items())


class SparseMixer(torch.nn.Module):
    """A Sparse Mixer encoder as a module of PyTorch, on the CPU, in float32.

    Takes the arguments of `sparse_mixer.SparseMixer`, or such an encoder. Parameters have TensorFlow's names with dots
    for slashes, in Keras order, such as ``transformer.layer_0.intermediate.kernel``; kernels are ``[in, out]``, as in
    TensorFlow. The core has a copy of them, which a call brings up to date with those that have changed.

    `torch.manual_seed` decides initial weights (without `seed`), dropout and router noise. A new module is in training
    mode, as every module.

    Examples:
        >>> import torch
        >>> from sparse_mixer.torch import SparseMixer
        >>> module = SparseMixer(100, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, seed=0)
        >>> ids = torch.zeros(4, 8, dtype=torch.int64)
        >>> outputs = module(dict(input_word_ids=ids, input_mask=torch.ones_like(ids), input_type_ids=ids))
        >>> (outputs["pooled_output"].sum() + outputs["aux_loss"]).backward()
        >>> module.word_embeddings.embeddings.grad.shape
        torch.Size([100, 16])

    Attributes:
        embedding_layer: The module that looks up word rows in place of a table, if one was given; else None.
    """

    __signature__ = _SIGNATURE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the module with fresh weights, or with an encoder's.

        Args:
            *args: As `sparse_mixer.SparseMixer`; or just an encoder, whose arguments and weights are copied.
            **kwargs: As there. An `embedding_layer` that is a `torch.nn.Module` is a part of this module.

        Raises:
            TypeError, ValueError: As there.
        """
        super().__init__()
        self.embedding_layer: Any = None
        given = args[0] if args else kwargs.get("vocab_size")
        owned, draws = not isinstance(given, networks.SparseMixer), False
        if isinstance(given, networks.SparseMixer):
            if len(args) + len(kwargs) > 1:
                raise TypeError("SparseMixer: an encoder has its arguments already, expected no others")
            encoder, self._resources = given, {}
        else:
            arguments = dict(_SIGNATURE.bind(*args, **kwargs).arguments)
            if isinstance(arguments.get("embedding_layer"), torch.nn.Module):
                self.embedding_layer = arguments["embedding_layer"]
                arguments["embedding_layer"] = _no_rows
            draws = arguments.get("seed") is None and getattr(arguments.get("initializer"), "seed", None) is None
            if draws:
                arguments["seed"] = int(draw_seed())
            encoder = networks.SparseMixer(**arguments)
            self._resources = {name: arguments.get(name) for name in ("num_threads", "isa")}
        self._config = encoder.get_config()
        if draws:
            self._config.pop("seed", None)
        self._start(encoder, owned)
        self._add_parameters(encoder)
        self._engine.believe(self._tensors())

    @classmethod
    def from_encoder(cls, encoder: networks.SparseMixer) -> SparseMixer:
        """A module with the arguments and weights of `encoder`, independent of it from then on."""
        return cls(encoder)

    def to_encoder(self) -> networks.SparseMixer:
        """A `sparse_mixer.SparseMixer` with the arguments and weights of this module, independent of it from then on.

        Raises:
            ValueError: Word rows come from a module of PyTorch.
        """
        if self.embedding_layer is not None:
            raise ValueError("to_encoder: word rows come from a module of PyTorch, which the encoder cannot call")
        return self._engine.snapshot(self._tensors())

    def get_config(self) -> dict[str, Any]:
        """The arguments, as `sparse_mixer.SparseMixer.get_config` returns them; without a seed that nobody gave."""
        own = self.embedding_layer
        return {**self._config, **({} if own is None else {"embedding_layer": own})}

    def get_embedding_table(self) -> Any:
        """The parameter [V, W] of the word table; `weight` of an own embedding layer."""
        own = self.embedding_layer
        return self.word_embeddings.embeddings if own is None else own.weight

    # Calling ------------------------------------------------------------------------------------------------------

    def forward(
        self, inputs: Mapping[str, Any], *, outputs: Sequence[str] | None = None, seed: int | None = None
    ) -> dict[str, Any]:
        """Encode a batch.

        Args:
            inputs: Dict of tensors or arrays as `sparse_mixer.SparseMixer` takes. Floating-point inputs
                (``input_word_embeddings``, ``dense_inputs``) get gradients if they require them.
            outputs: Which of ``sequence_output``, ``pooled_output`` and ``encoder_outputs`` are wanted; None for all.
                What none of them needs is not computed.
            seed: Source of dropout and router noise; None to take one from PyTorch's generator.

        Returns:
            Dict of tensors, float32: ``sequence_output`` [B, S, H]; ``pooled_output`` [B, H], not without a pooler;
            ``encoder_outputs``, a list whose last entry is ``sequence_output``; ``aux_loss``, scalar, the sum of the
            routers' weighted losses, to be added to the training loss; ``router_metrics``, a dict of tensors without
            gradient, [num_moe_layers], and ``expert_load`` [num_moe_layers, num_experts], as
            `sparse_mixer.SparseMixer.aux_losses`. ``router_metrics`` is there only with MoE layers.

        Raises:
            ValueError: Missing or ill-shaped inputs, ids outside their vocabulary, NaN or infinite embeddings; inputs
                that are not on the CPU; in the backward pass, NaN or infinite gradients.
            TypeError: Inputs or parameters of a wrong type.
            KeyboardInterrupt: Interrupted.
        """
        engine: Engine = self._engine
        names = self._output_names(outputs)
        given, others = self._read(inputs)
        weights = self._tensors()
        wanted: list[str] = []
        if torch.is_grad_enabled():
            wanted = [name for name in _DIFFERENTIABLE if name in given and given[name].requires_grad]
            wanted += [key for key, tensor in zip(engine.keys, weights, strict=True) if tensor.requires_grad]
        call = Call(
            engine=engine,
            names=tuple(given),
            others=others,
            wanted=tuple(wanted),
            training=self.training,
            seed=seed if seed is None or torch.compiler.is_compiling() else as_seed("seed", seed),
            draws=self.training and self._draws,
            outputs=names,
        )
        found, total, metrics = encode(call, [*given.values(), *weights])
        results: dict[str, Any] = {}
        if "encoder_outputs" in names:
            blocks, found = found[: engine.num_blocks], found[engine.num_blocks :]
            if "sequence_output" in names:
                results["sequence_output"] = blocks[-1]
        elif "sequence_output" in names:
            results["sequence_output"], *found = found
        if "pooled_output" in names:
            results["pooled_output"] = found[0]
        if "encoder_outputs" in names:
            results["encoder_outputs"] = blocks
        results["aux_loss"] = total
        if engine.num_moe_layers:
            results["router_metrics"] = metrics
        return results

    def weights_changed(self) -> None:
        """Say that parameters have been written to behind PyTorch's back.

        Needed only where single rows or numbers are changed through ``parameter.data`` or a numpy view. Everything else
        is noticed: optimizers, ``load_state_dict``, other parameters in their places, and whatever changes all weights.
        """
        self._engine.forget()

    def _output_names(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        pooler = self._engine.arguments.with_pooler
        if outputs is None:
            return _OUTPUTS if pooler else _WITHOUT_POOLER
        known = _OUTPUTS if pooler else _WITHOUT_POOLER
        names = tuple(outputs) if torch.compiler.is_compiling() else tuple(as_strings("outputs", outputs, "names"))
        for name in names:
            if name not in known:
                raise ValueError(f"outputs: got {name!r}, expected {', '.join(map(repr, known))}")
        return tuple(name for name in known if name in names)

    def _read(self, inputs: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """The inputs as tensors, in a fixed order, and the names of the dict's other entries."""
        if not isinstance(inputs, dict):
            inputs = as_inputs(inputs)
        given: dict[str, Any] = {}
        for name in KEYS:
            value = inputs.get(name)
            if value is None:
                continue
            if not isinstance(value, torch.Tensor):
                value = torch.as_tensor(value)
            if value.device.type != "cpu":
                raise ValueError(f"{name}: got a tensor on {value.device}, expected one on the CPU")
            if (
                name in _FLOATS
                and value.dtype != torch.float32
                and (value.is_floating_point() or value.dtype == torch.bool)
            ):
                value = value.to(torch.float32)
            given[name] = value
        if self.embedding_layer is not None and "input_word_embeddings" not in given and "input_word_ids" in given:
            ids, pad_id = given["input_word_ids"], self._engine.arguments.padding_id()
            rows = torch.as_tensor(self.embedding_layer(ids)).to(torch.float32)
            given = {"input_word_embeddings": rows, **{name: given[name] for name in given if name != "input_word_ids"}}
            if pad_id is not None and "input_mask" not in given:
                given["input_mask"] = (ids != pad_id).to(torch.float32)
        return given, tuple(name for name in inputs if name not in KEYS)

    # Parameters ---------------------------------------------------------------------------------------------------

    def _start(self, encoder: networks.SparseMixer, owned: bool) -> None:
        self._engine = Engine(encoder, owned)
        arguments = self._engine.arguments
        rates = (
            arguments.output_dropout,
            arguments.attention_dropout,
            arguments.jitter_noise,
            arguments.expert_dropout,
        )
        self._draws = any(rates)

    def _add_parameters(self, encoder: networks.SparseMixer) -> None:
        trainable = {id(variable) for variable in encoder.trainable_weights}
        own = [variable for variable in encoder.weights if isinstance(variable, Variable)]
        self._places: list[tuple[torch.nn.Module, str]] = []
        for variable in own:
            *path, leaf = variable.key.split("/")
            owner: torch.nn.Module = self
            for name in path:
                if name not in owner._modules:
                    owner.add_module(name, Weights())
                owner = owner._modules[name]
            values = torch.from_numpy(variable.numpy())
            owner.register_parameter(leaf, torch.nn.Parameter(values, requires_grad=id(variable) in trainable))
            self._places.append((owner, leaf))

    def _tensors(self) -> list[Any]:
        """The parameters, in the engine's order; what stands in their places counts, such as `parametrize` puts there.

        Raises:
            TypeError: One that is not float32.
        """
        tensors = []
        for owner, leaf in self._places:
            tensor = owner._parameters.get(leaf)
            if tensor is None:
                tensor = getattr(owner, leaf)
            if tensor.dtype != torch.float32:
                raise TypeError(f"{leaf}: got a parameter of {tensor.dtype}, expected torch.float32")
            tensors.append(tensor)
        return tensors

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> SparseMixer:
        # All of `to`, `half`, `cuda` and so on come by here.
        after = fn(torch.zeros(1))
        if after.device.type != "cpu" or after.dtype != torch.float32:
            raise TypeError(
                f"SparseMixer: got {after.dtype} on {after.device}, but this module computes in float32 on the CPU; "
                "move or convert the other modules, and its outputs"
            )
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The core's copy of the weights is made again from the parameters.
        return {name: value for name, value in self.__dict__.items() if name != "_engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start(networks.SparseMixer(**{**self._config, **self._resources, "initializer": "zeros"}), True)

    def extra_repr(self) -> str:
        """Sizes."""
        arguments = self._engine.arguments
        return (
            f"vocab_size={arguments.vocab_size}, hidden_size={arguments.hidden_size}, num_layers={arguments.num_layers}"
        )


def _no_rows(_ids: Any) -> Any:
    """The embedding layer of an encoder that is always given word rows."""
    raise ValueError("input_word_ids: missing from the inputs")
