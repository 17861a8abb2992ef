"""Train a small Sparse Mixer on a real task: which package of the standard library does this documentation come from?

Starts from random weights and takes about a minute on two cores. The accuracy on unseen passages is set beside that of
guesses that read no words (always the most frequent package, or the most frequent one among passages of about the same
length), and of naive Bayes, which counts words without their order. Stopping it (Ctrl-C) and starting it again resumes
where it was, to the same result.

    python examples/finetune.py
    python examples/finetune.py --epochs 12 --classes 20
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import sparse_mixer
import tokenizers
from corpus import Passage, stdlib_passages, tokenizer_of_run
from sparse_mixer import models, optimizers, schedules, text

LENGTH = 128
HELD_OUT = 5
"""One passage in this many is kept for validation."""

Data = tuple[dict[str, np.ndarray], np.ndarray]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=12, help="number of packages, those with most documentation")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("out/finetune"), help="folder of state and results")
    return parser.parse_args()


def load_data(classes: int, folder: Path) -> tuple[Data, Data, list[str], tokenizers.Tokenizer]:
    """Return training data, validation data, the classes' names, and the tokenizer."""
    passages = list(stdlib_passages(characters=400))
    names = [name for name, _ in Counter(p.package for p in passages).most_common(classes)]
    passages = [p for p in passages if p.package in names]
    order = np.random.default_rng(0).permutation(len(passages))
    split = len(order) // HELD_OUT

    training = [passages[i] for i in order[split:]]
    tokenizer = tokenizer_of_run((p.text for p in training), folder)

    def prepared(chosen: list[Passage]) -> Data:
        labels = np.array([names.index(p.package) for p in chosen], np.int32)
        return text.encode(tokenizer, [p.text for p in chosen], LENGTH), labels

    return prepared(training), prepared([passages[i] for i in order[:split]]), names, tokenizer


def accuracy_by_length(training: Data, validation: Data) -> float:
    """Accuracy of always naming the most frequent package among training passages of about the same length."""
    lengths = [data[0]["input_mask"].sum(axis=1) for data in (training, validation)]
    edges = np.quantile(lengths[0], np.linspace(0, 1, 11)[1:-1])
    bins = [np.digitize(length, edges) for length in lengths]
    guesses = [np.bincount(training[1][bins[0] == i], minlength=1).argmax() for i in range(10)]
    return float(np.mean(validation[1] == np.array(guesses)[bins[1]]))


def accuracy_of_naive_bayes(training: Data, validation: Data, vocab_size: int) -> float:
    """Accuracy of multinomial naive Bayes on counts of word pieces, with one added to each count."""

    def counts(data: Data) -> np.ndarray:
        ids = np.where(data[0]["input_word_ids"] < len(text.SPECIAL_TOKENS), 0, data[0]["input_word_ids"])
        return np.stack([np.bincount(row, minlength=vocab_size) for row in ids])[:, 1:]

    classes = np.eye(training[1].max() + 1)[training[1]]
    words = classes.T @ counts(training) + 1.0
    scores = counts(validation) @ np.log(words / words.sum(axis=1, keepdims=True)).T + np.log(classes.mean(axis=0))
    return float(np.mean(scores.argmax(axis=1) == validation[1]))


def main() -> None:
    """Train, report and save."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    training, validation, names, tokenizer = load_data(given.classes, given.output)
    vocab_size = tokenizer.get_vocab_size()
    print(f"{len(training[1])} passages to learn from, {len(validation[1])} to check, of {', '.join(names)}")

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
    )
    model = models.BertClassifier(encoder, num_classes=len(names), seed=0)
    steps = given.epochs * -(-len(training[1]) // given.batch_size)
    decay = schedules.PolynomialDecay(1e-3, decay_steps=steps, end_learning_rate=0.0)
    optimizer = optimizers.AdamW(
        schedules.LinearWarmup(decay, warmup_steps=steps // 10), weight_decay=0.01, global_clipnorm=1.0
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

    accuracy = history.epochs[-1]["val_accuracy"]
    print(f"accuracy {accuracy:.1%} on unseen passages")
    majority = np.mean(validation[1] == np.bincount(training[1]).argmax())
    by_length = accuracy_by_length(training, validation)
    naive_bayes = accuracy_of_naive_bayes(training, validation, vocab_size)
    print(f"without reading: most frequent package {majority:.1%}, by length {by_length:.1%}")
    print(f"counting words: naive Bayes {naive_bayes:.1%}")
    print(f"{len(history.steps)} updates, {minutes:.1f} minutes")
    model.save(given.output / "model.safetensors")
    (given.output / "classes.txt").write_text("\n".join(names) + "\n")
    history.plot().savefig(given.output / "learning_curve.png", dpi=120)
    print(f"model, tokenizer, classes and learning curve saved to {given.output}/")

    again = models.BertClassifier.load(given.output / "model.safetensors")
    few = {name: array[:3] for name, array in validation[0].items()}
    for guess, label in zip(again.predict_classes(few), validation[1], strict=False):
        print(f"a passage of {names[label]} is taken for one of {names[guess]}")


if __name__ == "__main__":
    main()
