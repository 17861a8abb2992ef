"""Encode real text with Sparse Mixer Base: from docstrings to vectors, router statistics and a picture of the routing.

The text is the documentation inside Python's own standard library, so nothing is downloaded. The weights are random
unless `--checkpoint` is given; then give its `--tokenizer` (a tokenizer.json) too.

    python examples/quickstart.py
    python examples/quickstart.py --dtype bfloat16 --sequences 256
    python examples/quickstart.py --checkpoint encoder.safetensors --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sparse_mixer
from corpus import shipped_tokenizer, stdlib_passages
from sparse_mixer import plots, text
from sparse_mixer.text import load_tokenizer
from tqdm.auto import tqdm

METRICS = {
    "unscaled_router_z_loss": "z-loss",
    "load_balancing_loss": "load balancing",
    "fraction_tokens_left_behind": "left behind",
    "router_confidence": "confidence",
    "expert_usage": "usage",
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="encoder with weights; without it they are random")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json that belongs to the checkpoint")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "int8"])
    parser.add_argument("--sequences", type=int, default=32, help="passages to encode")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, help="compute threads (default: all that this process may use)")
    parser.add_argument("--output", type=Path, default=Path("out/quickstart"), help="folder of the results")
    given = parser.parse_args()
    if given.checkpoint and not given.tokenizer:
        parser.error("--checkpoint needs the --tokenizer that it was trained with")
    return given


def tokenizer_for(given: argparse.Namespace) -> Any:
    """Load the checkpoint's tokenizer, or that of the examples."""
    return load_tokenizer(given.tokenizer) if given.tokenizer else shipped_tokenizer()


def encoder_for(given: argparse.Namespace, vocab_size: int) -> sparse_mixer.SparseMixer:
    """Load the checkpoint, or build the Base model with seeded random weights."""
    if given.checkpoint:
        encoder = sparse_mixer.SparseMixer.load(given.checkpoint)
    else:
        encoder = sparse_mixer.SparseMixer(vocab_size=vocab_size, seed=0)
    encoder.num_threads = given.threads
    return encoder if given.dtype == encoder.dtype else encoder.astype(given.dtype)


def encode(
    encoder: sparse_mixer.SparseMixer, inputs: dict[str, np.ndarray], batch_size: int
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield the pooled vectors [batch, hidden] and the router values of each batch, under a progress bar."""
    sequences, length = inputs["input_word_ids"].shape
    with tqdm(total=sequences, desc=f"encoding {sequences} x {length} tokens", unit=" sequences") as progress:
        for batch in text.batches(inputs, batch_size):
            outputs = encoder(batch, outputs=("pooled_output",))
            yield outputs["pooled_output"], encoder.aux_losses
            progress.update(len(outputs["pooled_output"]))


def router_table(aux: list[dict[str, Any]]) -> str:
    """Return a table of the router's values per mixture-of-experts layer, averaged over batches."""
    lines = ["layer" + "".join(f"{title:>16}" for title in METRICS.values())]
    means = {name: np.mean([values[name] for values in aux], axis=0) for name in METRICS}
    for row, layer in enumerate(aux[0]["moe_layers"]):
        lines.append(f"{layer:5d}" + "".join(f"{means[name][row]:16.4f}" for name in METRICS))
    return "\n".join(lines)


def main() -> None:
    """Run the tour."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)

    tokenizer = tokenizer_for(given)
    encoder = encoder_for(given, tokenizer.get_vocab_size())
    print(encoder)
    passages = list(stdlib_passages(limit=given.sequences))
    inputs = text.encode(tokenizer, [p.text for p in passages], encoder.get_config()["max_sequence_length"])
    print(f"{len(passages)} passages, {text.padding_share(inputs):.0%} padding")

    encoder({name: array[:1] for name, array in inputs.items()})  # packs the weights, so that the clock sees calls only
    start = time.perf_counter()
    pooled, aux = zip(*encode(encoder, inputs, given.batch_size), strict=True)
    seconds = time.perf_counter() - start

    vectors = np.concatenate(pooled)
    first = {name: array[: given.batch_size] for name, array in inputs.items()}
    outputs = encoder(first, outputs=("sequence_output", "pooled_output", "encoder_outputs", "routing"))
    print(f"\nsequence_output {outputs['sequence_output'].shape}, pooled_output {outputs['pooled_output'].shape},")
    print(f"encoder_outputs {len(outputs['encoder_outputs'])} x {outputs['encoder_outputs'][0].shape}")
    print(
        f"{len(vectors) / seconds:.2f} sequences/s, {inputs['input_word_ids'].size / seconds:.0f} tokens/s "
        f"({encoder.dtype}, {encoder.isa}, {encoder.num_threads} threads)"
    )

    np.save(given.output / "pooled.npy", vectors)
    tokenizer.save(str(given.output / "tokenizer.json"))
    print(f"\nvectors and tokenizer saved to {given.output}/")
    if len(aux[0]["moe_layers"]):
        print(f"\n{router_table(list(aux))}")
        picture = given.output / "routing.png"
        moe_layers, mask = aux[0]["moe_layers"], inputs["input_mask"][0]
        plots.routing_figure(outputs["routing"], moe_layers, mask=mask).savefig(picture, dpi=120)
        print(f"\npicture of the routing of the first passage: {picture}")


if __name__ == "__main__":
    main()
