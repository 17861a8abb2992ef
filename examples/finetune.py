"""Train a small Sparse Mixer where the order of words decides: were the two halves of this sentence swapped?

Every sentence is there both ways, so that whoever counts words without their order is right half the time. The
sentences are those of Python's own standard library; the model starts from random weights and takes about two minutes
on two cores. Beside it stand naive Bayes on counts of word pieces, and on counts kept apart for the two halves. It
repeats to the bit; stopping it (Ctrl-C) and starting it again resumes where it was, to the same result.

    python examples/finetune.py
    python examples/finetune.py --epochs 8 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import sparse_mixer
from corpus import sentence_halves, shipped_tokenizer
from sparse_mixer import models, optimizers, schedules, text

LENGTH = 48
HELD_OUT = 5
"""One sentence in this many is kept for validation."""
CLASSES = ("in order", "swapped")

Data = tuple[dict[str, np.ndarray], np.ndarray]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sentences", type=int, help="use so many sentences (default: all)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("out/finetune"), help="folder of state and results")
    return parser.parse_args()


def both_ways(halves: list[tuple[str, str]]) -> Data:
    """Return every sentence in order and swapped, and which is which."""
    tokenizer = shipped_tokenizer()
    ways = [text.encode(tokenizer, pairs, LENGTH) for pairs in (halves, [(b, a) for a, b in halves])]
    return {name: np.concatenate([way[name] for way in ways]) for name in ways[0]}, np.repeat([0, 1], len(halves))


def accuracy_of_naive_bayes(training: Data, validation: Data, vocab_size: int, by_half: bool) -> float:
    """Accuracy of multinomial naive Bayes on counts of word pieces, with one added to each count.

    Args:
        training: what it counts.
        validation: what it is tried on.
        vocab_size: number of word pieces.
        by_half: whether a piece in the first half counts as another one than in the second half.
    """

    def counts(data: Data) -> np.ndarray:
        ids, types = data[0]["input_word_ids"], data[0]["input_type_ids"]
        pieces = np.where(ids < len(text.SPECIAL_TOKENS), 0, ids + by_half * vocab_size * types)
        return np.stack([np.bincount(row, minlength=2 * vocab_size) for row in pieces]).astype(np.float32)[:, 1:]

    words = np.eye(2, dtype=np.float32)[training[1]].T @ counts(training) + 1.0
    scores = counts(validation) @ np.log(words / words.sum(axis=1, keepdims=True)).T
    return float(np.mean(scores.argmax(axis=1) == validation[1]))


def main() -> None:
    """Train, report and save."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    halves = sentence_halves()
    halves = [halves[i] for i in np.random.default_rng(0).permutation(len(halves))[: given.sentences]]
    held_out = len(halves) // HELD_OUT
    training, validation = both_ways(halves[held_out:]), both_ways(halves[:held_out])
    tokenizer = shipped_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    print(f"{len(halves) - held_out} sentences to learn from, {held_out} to check; for example:")
    print(f"  in order: {' | '.join(halves[0])}\n  swapped:  {' | '.join(halves[0][::-1])}")

    encoder = sparse_mixer.SparseMixer(
        vocab_size=vocab_size,
        hidden_size=128,
        num_layers=4,
        moe_layers=(1,),
        attention_layers=(2, 3),
        num_experts=4,
        num_attention_heads=4,
        max_sequence_length=LENGTH,
        type_vocab_size=2,
        inner_dim=512,
        seed=0,
        dtype=given.dtype,
    )
    model = models.BertClassifier(encoder, num_classes=2, seed=0)
    steps = given.epochs * -(-len(training[1]) // given.batch_size)
    decay = schedules.PolynomialDecay(1e-3, decay_steps=steps, end_learning_rate=0.0)
    optimizer = optimizers.AdamW(
        schedules.LinearWarmup(decay, warmup_steps=max(1, steps // 10)), weight_decay=0.01, global_clipnorm=1.0
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
        validation_data=validation,
        seed=0,
        state_path=state,
    )
    minutes = (time.perf_counter() - start) / 60

    print("\nswapped or not, on unseen sentences:")
    plain, by_half = (accuracy_of_naive_bayes(training, validation, vocab_size, way) for way in (False, True))
    print(f"  naive Bayes on counts of words        {plain:.1%} (both orders have the same words)")
    print(f"  naive Bayes on counts of each half    {by_half:.1%}")
    print(f"  this model                            {history.epochs[-1]['val_accuracy']:.1%}")
    print(f"{len(history.steps)} updates, {minutes:.1f} minutes")
    model.save(given.output / "model.safetensors")
    tokenizer.save(str(given.output / "tokenizer.json"))
    history.plot().savefig(given.output / "learning_curve.png", dpi=120)
    print(f"model, tokenizer and learning curve saved to {given.output}/")

    again = models.BertClassifier.load(given.output / "model.safetensors")
    few = np.r_[0:3, held_out : held_out + 3]
    guesses = again.predict_classes({name: array[few] for name, array in validation[0].items()})
    for position, guess in zip(few, guesses, strict=True):
        shown = halves[position % held_out][:: -1 if position >= held_out else 1]
        print(f"{CLASSES[int(guess)]:>9}: {' '.join(shown)}")


if __name__ == "__main__":
    main()
