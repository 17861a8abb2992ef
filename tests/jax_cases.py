"""Reads the stored calls of the paper's JAX code in `golden/jax`; its README lists the keys and tolerances."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import sparse_mixer
from golden_cases import GOLDEN
from sparse_mixer import layouts

Array = np.ndarray[Any, Any]

MIXING = {"f_net": "fourier", "h_net": "hartley", "c_net": "circulant", "t_net": "toeplitz"}

# |a - b| <= ABSOLUTE + RELATIVE * |b| for outputs, logits and metrics.
ABSOLUTE, RELATIVE = 5e-5, 1e-4
# |a - b| <= GRADIENT_RELATIVE * max|b of the tensor| + GRADIENT_ABSOLUTE
GRADIENT_RELATIVE, GRADIENT_ABSOLUTE = 1e-4, 1e-5


@dataclasses.dataclass(frozen=True)
class JaxCase:
    """One call of the JAX code."""

    name: str
    config: dict[str, Any]
    data: dict[str, Array]

    def part(self, prefix: str) -> dict[str, Array]:
        """The entries below `prefix`, without it."""
        return {key.removeprefix(prefix): value for key, value in self.data.items() if key.startswith(prefix)}

    @property
    def several_groups(self) -> bool:
        """Whether the JAX code exchanges expert parameters in this case."""
        return any(key.startswith("alt_no_group_mixup/") for key in self.data)

    @property
    def training(self) -> bool:
        """Whether the training capacity applies; there is no dropout then."""
        return not self.config["deterministic"]

    @property
    def moe_layers(self) -> list[int]:
        layers: list[int] = self.config["derived"].get("moe_layers", [])
        return layers

    @property
    def inputs(self) -> dict[str, Array]:
        """What an encoder of paper semantics needs: no mask."""
        return {"input_word_ids": self.data["inputs/input_ids"], "input_type_ids": self.data["inputs/type_ids"]}

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        c = self.config
        layers = c["num_layers"]
        attention = layouts.layer_indices(c["attention_layout"], layers, c["num_attention_layers"])
        return {
            "semantics": "paper",
            "vocab_size": c["vocab_size"],
            "hidden_size": c["d_model"],
            "embedding_width": c["d_emb"],
            "num_layers": layers,
            "attention_layers": tuple(range(layers)) if c["model_arch"] == "bert" else attention,
            "moe_layers": layouts.layer_indices(c["moe_layout"], layers, c["num_moe_layers"]),
            "num_experts": max(c["num_experts"], 1),
            "train_capacity_factor": c["train_capacity_factor"],
            "eval_capacity_factor": c["eval_capacity_factor"],
            "max_group_size": c["max_group_size"],
            "min_expert_capacity": c["min_expert_capacity"],
            "mixing_mechanism": MIXING.get(c["model_arch"], "linear"),
            "use_fft": c["use_fft"],
            "num_attention_heads": c["num_heads"],
            "max_sequence_length": c["max_seq_length"],
            "type_vocab_size": c["type_vocab_size"],
            "inner_dim": c["d_ff"],
            "expert_inner_dim": c["expert_d_ff"],
            "output_dropout": c["dropout_rate"],
            "attention_dropout": c["mixing_dropout_rate"],
            "expert_dropout": c["expert_dropout_rate"],
            "pad_id": c["pad_id"],
            "router": "experts_choose" if "experts" in c["dispatch_algorithm"] else "tokens_choose",
            "num_selected_experts": c["num_selected_experts"],
            "batch_prioritized_routing": c["batch_prioritized_routing"],
            "auxiliary_loss_factor": c["auxiliary_loss_factor"],
            "router_z_loss_weight": c["router_z_loss_factor"],
            "router_dtype": c["router_dtype"],
            "jitter_noise": c["jitter_noise"],
        }

    def encoder(self, **changes: Any) -> sparse_mixer.SparseMixer:
        """The encoder with the case's weights."""
        encoder = sparse_mixer.SparseMixer(**(self.arguments() | changes))
        encoder.load_weights(self.part("params/encoder/"))
        return encoder

    def expected_gradients(self, encoder: sparse_mixer.SparseMixer, prefix: str) -> dict[str, Array]:
        """Stored gradients under our names and in our layout; what is missing is zero."""
        stored = self.part(prefix + "encoder/")
        stored |= {
            key: np.zeros_like(value) for key, value in self.part("params/encoder/").items() if key not in stored
        }
        other = sparse_mixer.SparseMixer(**encoder.get_config())
        other.load_weights(stored)
        return dict(zip([weight.key for weight in encoder.weights], other.get_weights(), strict=True))


@functools.cache
def jax_case(name: str) -> JaxCase:
    """Loads one case."""
    with np.load(GOLDEN / "jax" / f"{name}.npz", allow_pickle=False) as file:
        data = dict(file)
    return JaxCase(name, json.loads(str(data.pop("config"))), data)


def jax_names(*kinds: str) -> list[str]:
    """Names of all cases of these kinds."""
    names = sorted(path.stem for path in (GOLDEN / "jax").glob("*.npz"))
    return [name for name in names if jax_case(name).config["kind"] in kinds]


def assert_close(name: str, ours: Any, expected: Any) -> None:
    """Compares outputs, logits, metrics or losses."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, f"{name}: shape {ours.shape}, expected {expected.shape}"
    np.testing.assert_allclose(ours, expected, atol=ABSOLUTE, rtol=RELATIVE, err_msg=name)


def assert_gradients_close(ours: Any, expected: dict[str, Array]) -> None:
    """Compares one gradient per name."""
    wrong = []
    for name, reference in expected.items():
        assert ours[name].shape == reference.shape, name
        peak = float(np.abs(reference).max(initial=0))
        error = float(np.abs(ours[name] - reference).max(initial=0))
        if not error <= GRADIENT_RELATIVE * peak + GRADIENT_ABSOLUTE:
            wrong.append(f"{name}: off by {error:.3g} of {peak:.3g}")
    assert not wrong, "\n".join(wrong)
