"""What the narrower storage types cost in accuracy: the Base model's tokens and routing beside its own float32.

With random weights a router is undecided about many tokens, so rounding sends some of them to other experts; without a
residual around the mixture (`norm_first=False`) such a token comes out different altogether, and mixing spreads that
to all others. The variants keep the two effects apart: rounding alone, and rounding with rerouting.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.workload import Workload, make_weights

DTYPES = ("bfloat16", "int8")

VARIANTS: dict[str, dict[str, Any]] = {
    "every expert takes every token": {"eval_capacity_factor": 16.0},
    "post-norm": {},
    "pre-norm": {"norm_first": True},
    "paper": {"semantics": "paper"},
}
"""Name of each row, with what it adds to the Base model's arguments."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """How one variant fares in one storage type; cosines are of `sequence_output` rows to float32."""

    variant: str
    dtype: str
    reroutings: float
    """Share of the mixtures' (token, expert) assignments that differ from float32's."""
    same_tokens: float
    """Share of tokens that keep all their experts in all mixtures."""
    cosine_same: tuple[float, float]
    """Median and first percentile over those tokens."""
    cosine_all: float
    """Median over all tokens."""


def _assignments(outputs: dict[str, Any], tokens: int) -> np.ndarray:
    """Return which expert takes which token, bool [mixtures, experts, tokens], of an example that is one group."""
    layers = []
    for layer in outputs["routing"]:
        chosen = np.zeros((layer["indices"].shape[1], tokens), bool)
        np.put_along_axis(chosen, layer["indices"][0], True, axis=1)
        layers.append(chosen)
    return np.stack(layers)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def measure(variant: str, examples: int) -> list[Quality]:
    """Compare every storage type with float32 on `examples` random sequences."""
    import sparse_mixer

    workload = Workload()
    arguments = {**workload.constructor_arguments(), **VARIANTS[variant]}
    if arguments.get("semantics") == "paper":
        del arguments["examples_per_group"]
    exact = sparse_mixer.SparseMixer(**arguments)
    exact.set_weights(make_weights([(w.name, tuple(w.shape)) for w in exact.weights]))
    encoders = {dtype: exact.astype(dtype) for dtype in DTYPES}
    collected: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {dtype: [] for dtype in DTYPES}
    tokens = workload.max_sequence_length
    for seed in range(examples):
        inputs = workload.inputs(1, seed=seed)
        wanted = exact(inputs, outputs=("sequence_output", "routing"))
        for dtype, encoder in encoders.items():
            got = encoder(inputs, outputs=("sequence_output", "routing"))
            differing = _assignments(wanted, tokens) ^ _assignments(got, tokens)
            cosines = _cosines(wanted["sequence_output"][0], got["sequence_output"][0])
            collected[dtype].append((differing, cosines))
    results = []
    for dtype, pairs in collected.items():
        differing = np.concatenate([d for d, _ in pairs], axis=-1)
        cosines = np.concatenate([c for _, c in pairs])
        same = ~differing.any((0, 1))
        taken = _assignments(wanted, tokens).sum() * examples
        # An assignment that moves is missing in one place and new in another.
        reroutings = float(differing.sum() / 2 / taken)
        median, low = (float(q) for q in np.quantile(cosines[same], (0.5, 0.01)))
        results.append(
            Quality(variant, dtype, reroutings, float(same.mean()), (median, low), float(np.median(cosines)))
        )
    return results


def run(examples: int, folder: pathlib.Path | None) -> str:
    """Measure every variant and return the printed table; `quality.json` and `quality.md` go to `folder`."""
    rows = [row for variant in tqdm(VARIANTS, desc="quality", leave=False) for row in measure(variant, examples)]
    header = [
        "Base model",
        "dtype",
        "rerouted",
        "tokens that keep experts",
        "cosine: median",
        "1%",
        "all tokens: median",
    ]
    lines = [
        [
            row.variant,
            row.dtype,
            f"{row.reroutings:.1%}",
            f"{row.same_tokens:.0%}",
            *(f"{cosine:.5f}" for cosine in (*row.cosine_same, row.cosine_all)),
        ]
        for row in rows
    ]
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "quality", {"examples": examples, "rows": [dataclasses.asdict(r) for r in rows]}, table)
    return table
