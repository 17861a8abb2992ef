"""What the narrower storage types cost in accuracy: the Base model's tokens and routing beside its own float32.

With random weights a router is undecided about many tokens, so rounding sends some of them to other experts; without a
residual around the mixture (`norm_first=False`) such a token comes out different altogether, and mixing spreads that
to all others. The variants keep the two effects apart: rounding alone, and rounding with rerouting.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.workload import Workload, make_weights

WANTED = {"bfloat16": 0.9995, "int8": 0.995}
"""The storage types, and the cosine that a token shall reach beside float32."""

# The golden cases' kinds of layers at a size where rounding adds up.
_MIDDLE = {"hidden_size": 256, "inner_dim": 1024, "max_sequence_length": 256, "num_layers": 8, "num_experts": 8}

VARIANTS: dict[str, dict[str, Any]] = {
    "Base, every expert takes every token": {"eval_capacity_factor": 16.0},
    "Base": {},
    "Base, pre-norm": {"norm_first": True},
    "Base, paper": {"semantics": "paper"},
    "middle, no experts": {**_MIDDLE, "moe_layers": (), "attention_layers": (6, 7)},
    "middle, attention everywhere, pre-norm": {
        **_MIDDLE,
        "moe_layers": (3, 4),
        "attention_layers": tuple(range(8)),
        "norm_first": True,
    },
    "middle, Fourier, paper": {
        **_MIDDLE,
        "moe_layers": (3, 4),
        "attention_layers": (),
        "mixing_mechanism": "fourier",
        "semantics": "paper",
    },
    "middle, tokens choose, paper": {
        **_MIDDLE,
        "moe_layers": (3, 4),
        "attention_layers": (6, 7),
        "semantics": "paper",
        "router": "tokens_choose",
    },
}
"""Name of each row, with what it changes of the Base model's arguments."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """How one variant fares in one storage type; cosines are of `sequence_output` rows to float32."""

    variant: str
    weights: str
    dtype: str
    reroutings: float
    """Share of the mixtures' (token, expert) assignments that differ from float32's."""
    same_tokens: float
    """Share of tokens that keep all their experts in all mixtures."""
    cosine_same: tuple[float, float]
    """Median and first percentile over those tokens."""
    good: float
    """Share of those tokens that reach the wanted cosine."""
    cosine_all: float
    """Median over all tokens."""


def _assignments(outputs: dict[str, Any], tokens: int) -> np.ndarray:
    """Return which expert takes which token, bool [mixtures, experts, tokens], of an example that is one group."""
    layers = []
    for layer in outputs["routing"]:
        indices = layer["indices"][0]
        chosen = np.zeros((len(indices), tokens + 1), bool)
        np.put_along_axis(chosen, indices, True, axis=1)  # empty slots, -1, are the last column
        layers.append(chosen[:, :tokens])
    return np.stack(layers) if layers else np.zeros((1, 1, tokens), bool)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def trained_like(weights: list[np.ndarray], names: list[str]) -> list[np.ndarray]:
    """Return weights of a trained model's scale: gains and biases that differ, decided routers, kernels by fan-in."""
    scaled = []
    for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
        noise = np.random.default_rng((1, index)).standard_normal(weight.shape, dtype=np.float32)
        if weight.ndim < 2 or name.endswith("bias"):
            scaled.append(weight + np.float32(0.1) * noise)
        elif "router" in name:
            # Logits of standard deviation 3 on normalised rows.
            scaled.append(noise * np.float32(3 / np.sqrt(weight.shape[-2])))
        elif "embedding" in name:
            scaled.append(np.float32(0.05) * noise)
        else:
            # Residual branches of a trained model add about half of what they are added to.
            scaled.append(noise * np.float32(0.7 / np.sqrt(_fan_in(name, weight.shape))))
    return scaled


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Return how many terms each sum of a product with this kernel has."""
    if "attention/" in name:  # [H, N, D], and [N, D, H] at the output
        return math.prod(shape[:-1]) if "output" in name else shape[0]
    return shape[-2]


def measure(variant: str, weights: str, examples: int) -> list[Quality]:
    """Compare every storage type with float32 on `examples` random sequences."""
    import sparse_mixer

    arguments = {**Workload().constructor_arguments(), **VARIANTS[variant]}
    if arguments.get("semantics") == "paper":
        # Groups of one example, as everywhere else.
        del arguments["examples_per_group"]
        arguments["max_group_size"] = arguments["max_sequence_length"]
    exact = sparse_mixer.SparseMixer(**arguments)
    values = make_weights([(w.name, tuple(w.shape)) for w in exact.weights])
    if weights == "trained-like":
        values = trained_like(values, [w.name.split(":")[0] for w in exact.weights])
    exact.set_weights(values)
    workload = Workload(max_sequence_length=arguments["max_sequence_length"])
    return compare(exact, [workload.inputs(1, seed=seed) for seed in range(examples)], variant, weights)


def measure_saved(folder: pathlib.Path, examples: int) -> list[Quality]:
    """Compare every storage type with float32 for what an example has trained in `folder`, on passages of text."""
    import sparse_mixer
    import tokenizers
    from sparse_mixer import text

    from examples.corpus import stdlib_passages

    (file,) = folder.glob("*.safetensors")
    exact = sparse_mixer.SparseMixer.load(file, dtype="float32")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    passages = [passage.text for passage in stdlib_passages(450)]
    inputs = text.encode(tokenizer, passages[:: len(passages) // examples], exact.arguments.max_sequence_length)
    variant = f"{exact.arguments.num_layers} layers of {exact.arguments.hidden_size}, examples/{folder.name}.py"
    return compare(exact, list(text.batches(inputs, 1)), variant, "trained")


def compare(exact: Any, inputs: list[dict[str, Any]], variant: str, weights: str) -> list[Quality]:
    """Compare every storage type with the float32 encoder `exact`, sequence by sequence."""
    tokens = exact.arguments.max_sequence_length
    encoders = {dtype: exact.astype(dtype) for dtype in WANTED}
    collected: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {dtype: [] for dtype in WANTED}
    taken = 0
    for sequence in inputs:
        wanted = exact(sequence, outputs=("sequence_output", "routing"))
        chosen = _assignments(wanted, tokens)
        taken += int(chosen.sum())
        for dtype, encoder in encoders.items():
            got = encoder(sequence, outputs=("sequence_output", "routing"))
            cosines = _cosines(wanted["sequence_output"][0], got["sequence_output"][0])
            collected[dtype].append((chosen ^ _assignments(got, tokens), cosines))
    results = []
    for dtype, pairs in collected.items():
        differing = np.concatenate([d for d, _ in pairs], axis=-1)
        cosines = np.concatenate([c for _, c in pairs])
        same = ~differing.any((0, 1))
        # An assignment that moves is missing in one place and new in another.
        reroutings = float(differing.sum() / 2 / max(taken, 1))
        median, low = (float(q) for q in np.quantile(cosines[same], (0.5, 0.01)))
        good = float((cosines[same] >= WANTED[dtype]).mean())
        share, everyone = float(same.mean()), float(np.median(cosines))
        results.append(Quality(variant, weights, dtype, reroutings, share, (median, low), good, everyone))
    return results


def run(examples: int, trained: list[pathlib.Path], folder: pathlib.Path | None) -> str:
    """Measure every variant and the `trained` encoders; return the table; `quality.json` and `.md` go to `folder`."""
    cases = [(variant, weights) for variant in VARIANTS for weights in ("random", "trained-like")]
    rows = [row for case in tqdm(cases, desc="quality", leave=False) for row in measure(*case, examples)]
    rows += [row for saved in trained for row in measure_saved(saved, 16 * examples)]  # they are small
    header = [
        "model",
        "weights",
        "dtype",
        "rerouted",
        "tokens that keep experts",
        "cosine: median",
        "1%",
        "good",
        "all tokens: median",
    ]
    lines = [
        [
            row.variant,
            row.weights,
            row.dtype,
            f"{row.reroutings:.1%}",
            f"{row.same_tokens:.0%}",
            *(f"{cosine:.5f}" for cosine in row.cosine_same),
            f"{row.good:.1%}",
            f"{row.cosine_all:.5f}",
        ]
        for row in rows
    ]
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "quality", {"examples": examples, "rows": [dataclasses.asdict(r) for r in rows]}, table)
    return table
