"""Reads the stored calls of the reference encoder in `golden/keras`; its README lists the keys."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

GOLDEN = Path(__file__).parent / "golden"


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One call of the reference: what it was given and what came out."""

    name: str
    config: dict[str, Any]
    training: bool
    weight_names: list[str]
    weights: list[Array]
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    """Under `sequence_output`, `pooled_output`, `encoder_output_00`, ..."""
    noise: dict[str, float]
    """Per output: float32 noise of the reference, as its distance from a float64 evaluation."""
    losses: Array
    metric_names: list[str]
    metrics: Array
    router_margin: Array
    gradients: Gradients | None


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients of `sum(sequence_output * d_sequence) + sum(pooled_output * d_pooled)`."""

    d_sequence: Array
    d_pooled: Array
    loss: float
    weights: list[Array]
    word_embeddings: Array
    """With respect to the looked-up (or given) word rows, before positions and types are added."""


def golden_names(*, gradients: bool = False) -> list[str]:
    """Names of all cases, or of those that come with gradients."""
    pattern = "grad_*.npz" if gradients else "*.npz"
    return sorted(path.stem for path in (GOLDEN / "keras").glob(pattern))


@functools.cache
def golden_case(name: str) -> GoldenCase:
    """Loads one case."""
    with np.load(GOLDEN / "keras" / f"{name}.npz", allow_pickle=False) as file:
        data = dict(file)

    def text(key: str) -> Any:
        return json.loads(str(data[key]))

    def part(prefix: str) -> dict[str, Array]:
        return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}

    names = [name.split("/", 1)[1].removesuffix(":0") for name in text("weight_names")]
    gradients = None
    if "R1" in data:
        gradients = Gradients(
            d_sequence=data["R1"],
            d_pooled=data["R2"],
            loss=float(data["loss_value"]),
            weights=[data[f"grad_w{i:03d}"] for i in range(len(names))],
            word_embeddings=data["grad_word_embeddings_output"],
        )
    return GoldenCase(
        name=name,
        config=text("config"),
        training=text("call")["training"],
        weight_names=names,
        weights=[data[f"w{i:03d}"] for i in range(len(names))],
        inputs=part("in_"),
        outputs=part("out_"),
        noise=text("noise"),
        losses=data["losses"],
        metric_names=text("metric_names"),
        metrics=data["metrics"],
        router_margin=data["router_margin"],
        gradients=gradients,
    )


def manifests() -> dict[str, dict[str, Any]]:
    """Names and shapes of the reference's weights for a dozen configurations, by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((GOLDEN / "manifests").glob("*.json"))}
