"""Pre-train a small Sparse Mixer by masked language modelling on text that every machine has.

The text is the documentation inside Python's own standard library. The loss on held-out passages is set beside the
unigram entropy: what the best guess would cost that knows how frequent each word piece is, but not what stands around
it. Starts from random weights and takes some minutes on two cores. Stopping it (Ctrl-C) and starting it again resumes
where it was, to the same result.

    python examples/pretrain.py
    python examples/pretrain.py --epochs 40 --mixing fourier
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import numpy as np
import sparse_mixer
from corpus import shipped_tokenizer, stdlib_passages
from sparse_mixer import masking, models, optimizers, schedules, text

LENGTH = 128
PREDICTIONS = 20
"""Most masked positions of one passage."""
HELD_OUT = 20
"""One passage in this many is kept for validation."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--passages", type=int, help="use so many passages (default: all)")
    parser.add_argument("--mixing", default="linear", choices=["linear", "fourier", "hartley"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("out/pretrain"), help="folder of state and results")
    return parser.parse_args()


def unigram_entropy(training: np.ndarray, validation: np.ndarray, vocab_size: int) -> float:
    """Nats per word piece of `validation` when each is guessed by its frequency in `training`."""
    counts = np.bincount(training, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[validation].mean())


def main() -> None:
    """Train, report and save."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    passages = [passage.text for passage in stdlib_passages(450, given.passages)]
    order = np.random.default_rng(0).permutation(len(passages))
    held_out, used = np.split(order, [len(order) // HELD_OUT])
    tokenizer = shipped_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    training, validation = (text.encode(tokenizer, [passages[i] for i in part], LENGTH) for part in (used, held_out))

    mask = functools.partial(
        masking.mask_tokens,
        mask_id=tokenizer.token_to_id("[MASK]"),
        vocab_size=vocab_size,
        special_ids=range(len(text.SPECIAL_TOKENS)),
        max_predictions=PREDICTIONS,
    )
    pieces = training["input_word_ids"][training["input_word_ids"] >= len(text.SPECIAL_TOKENS)]
    validation = mask(validation, seed=0)
    hidden = validation["masked_lm_ids"][validation["masked_lm_weights"] > 0]
    entropy = unigram_entropy(pieces, hidden, vocab_size)
    print(f"{len(used)} passages, {len(pieces)} word pieces of {vocab_size}; unigram entropy {entropy:.3f} nats")

    encoder = sparse_mixer.SparseMixer(
        vocab_size=vocab_size,
        hidden_size=192,
        num_layers=4,
        moe_layers=(1,),
        attention_layers=(2, 3),
        num_experts=4,
        num_attention_heads=4,
        mixing_mechanism=given.mixing,
        max_sequence_length=LENGTH,
        type_vocab_size=1,
        inner_dim=768,
        seed=0,
        dtype=given.dtype,
    )
    model = models.BertPretrainerV2(encoder, "gelu", seed=0)
    steps = given.epochs * -(-len(used) // given.batch_size)
    decay = schedules.PolynomialDecay(1e-3, decay_steps=steps, end_learning_rate=0.0)
    optimizer = optimizers.AdamW(
        schedules.LinearWarmup(decay, warmup_steps=steps // 20), weight_decay=0.01, global_clipnorm=1.0
    )

    state = given.output / "state.npz"
    if state.exists():
        print(f"resumes from {state}; delete it to start over")
    start = time.perf_counter()
    history = model.fit(
        training,
        optimizer=optimizer,
        epochs=given.epochs,
        batch_size=given.batch_size,
        transform=lambda batch, seed: mask(batch, seed=seed),
        validation_data=validation,
        seed=0,
        state_path=state,
    )
    minutes = (time.perf_counter() - start) / 60

    loss = history.epochs[-1]["val_mlm_loss"]
    print(f"loss {loss:.3f} nats per hidden word piece of unseen passages; unigram entropy {entropy:.3f}")
    print(f"{len(history.steps)} updates, {minutes:.1f} minutes")
    encoder.save(given.output / "encoder.safetensors")
    tokenizer.save(str(given.output / "tokenizer.json"))
    figure = history.plot()
    figure.axes[0].axhline(entropy, color="black", linestyle="--", linewidth=0.8, label="unigram entropy")
    figure.axes[0].legend()
    figure.savefig(given.output / "learning_curve.png", dpi=120)
    print(f"encoder, tokenizer and learning curve saved to {given.output}/")


if __name__ == "__main__":
    main()
