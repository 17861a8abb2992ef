"""Teach a small Sparse Mixer to give the vectors of a sentence encoder: a teacher's folder in, a faster student out.

The teacher is any folder that `TextEncoder` reads, for example all-MiniLM-L6-v2; both run on the same engine. The
student starts with the teacher's word embeddings, learns from texts without labels, and is compared with the teacher on
texts that it has not seen: rank correlation of the cosines of all pairs, and how many of the teacher's ten nearest are
among its own ten. Beside it stands the mean of the teacher's word embeddings, which costs nothing.

    python examples/distill.py FOLDER
    python examples/distill.py FOLDER --texts mine.txt --updates 20000 --layers 3
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus import installed_texts
from sparse_mixer import SparseMixer, TextEncoder, optimizers, schedules
from sparse_mixer.gradients import Gradients
from sparse_mixer.text import encode
from tqdm.auto import tqdm

HELD_OUT = 2000


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("teacher", type=Path, help="folder of a sentence encoder")
    parser.add_argument(
        "--texts", type=Path, help="file with a text per line (default: docstrings of what is installed)"
    )
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens per text; the rest is cut for both")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="the student while it learns"
    )
    parser.add_argument("--every", type=int, default=500, help="updates between two comparisons")
    parser.add_argument("--threads", type=int, help="compute threads (default: all that this process may use)")
    parser.add_argument("--output", type=Path, default=Path("out/distill"), help="folder of the student and the curve")
    return parser.parse_args()


def student_of(teacher: TextEncoder, given: argparse.Namespace) -> SparseMixer:
    """A Sparse Mixer as wide as the teacher, with its word embeddings: attention in the upper half, experts below."""
    sizes = teacher.encoder.get_config()
    student = SparseMixer(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_layers=given.layers,
        moe_layers=(1,),
        attention_layers=tuple(range(given.layers // 2, given.layers)),
        num_experts=4,
        num_attention_heads=sizes["num_attention_heads"],
        inner_dim=sizes["inner_dim"],
        max_sequence_length=given.length,
        with_pooler=False,
        output_dropout=0.0,
        attention_dropout=0.0,
        seed=0,
    )
    student.get_embedding_table().assign(teacher.encoder.get_embedding_table().numpy())
    student.num_threads = given.threads
    return student if given.dtype == student.dtype else student.astype(given.dtype)


def batches(count: int, size: int, updates: int) -> Iterator[np.ndarray]:
    """Yield `updates` batches of positions, in another order each time that all have been seen."""
    order: list[int] = []
    rng = np.random.default_rng(0)
    for _ in range(updates):
        if len(order) < size:
            order = rng.permutation(count).tolist()
        batch, order = order[:size], order[size:]
        yield np.array(batch)


def loss_and_gradient(sequence: np.ndarray, mask: np.ndarray, teacher: np.ndarray) -> tuple[float, np.ndarray]:
    """Compare the mean of the student's outputs with the teacher's vectors.

    The loss is ``1 - cosine``, plus the mean squared difference of the cosines between the texts of the batch.

    Args:
        sequence: the student's outputs, float32 [B, S, H].
        mask: 1 for tokens, 0 for padding, [B, S].
        teacher: the teacher's vectors, of length 1, float32 [B, H].

    Returns:
        The loss, and its gradient with respect to `sequence`.
    """
    share = (mask / mask.sum(axis=1, keepdims=True)).astype(np.float32)
    mean = np.einsum("bsh,bs->bh", sequence, share)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    vectors = mean / norm
    count = len(vectors)
    off = vectors @ vectors.T - teacher @ teacher.T
    loss = 1.0 - (vectors * teacher).sum() / count + (off**2).mean()
    d_vectors = -teacher / count + 4.0 * off @ vectors / count**2
    d_mean = (d_vectors - vectors * (d_vectors * vectors).sum(axis=1, keepdims=True)) / norm
    return float(loss), d_mean[:, None, :] * share[:, :, None]


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value; equal ones, which cosines hardly are, in the order they come."""
    result = np.empty(len(values))
    result[np.argsort(values, kind="stable")] = np.arange(len(values))
    return result


def compare(vectors: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """Spearman's rank correlation of the cosines of all pairs, and the recall of the teacher's ten nearest.

    Args:
        vectors: [N, D], of length 1.
        teacher: [N, H], of length 1.
    """
    own, true = vectors @ vectors.T, teacher @ teacher.T
    pairs = np.triu_indices(len(own), 1)
    correlation = np.corrcoef(ranks(own[pairs]), ranks(true[pairs]))[0, 1]
    for cosines in (own, true):
        np.fill_diagonal(cosines, -2.0)
    nearest = [np.argpartition(-cosines, 10, axis=1)[:, :10] for cosines in (own, true)]
    found = [len(set(a) & set(b)) for a, b in zip(*map(np.ndarray.tolist, nearest), strict=True)]
    return {"rank_correlation": float(correlation), "recall_at_10": float(np.mean(found)) / 10}


def static_vectors(teacher: TextEncoder, texts: list[str]) -> np.ndarray:
    """Return the means of the teacher's word embeddings, of length 1: what a student without any layer would give."""
    table = teacher.encoder.get_embedding_table().numpy()
    inputs = encode(teacher.tokenizer, texts, teacher.max_seq_length)
    special = [teacher.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")]
    counted = inputs["input_mask"] * ~np.isin(inputs["input_word_ids"], special)
    means = np.stack(
        [table[ids[use > 0]].mean(axis=0) for ids, use in zip(inputs["input_word_ids"], counted, strict=True)]
    )
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def speed(encoder: TextEncoder, texts: list[str]) -> float:
    """Return texts per second, the best of three times."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        encoder.encode(texts, on_truncation="ignore")
        seconds.append(time.perf_counter() - start)
    return len(texts) / min(seconds)


def learn(
    student: SparseMixer, teacher: TextEncoder, texts: list[str], given: argparse.Namespace
) -> Iterator[tuple[int, float]]:
    """Train the student; yield the number of updates and the mean loss every `given.every` updates and at the end."""
    decay = schedules.PolynomialDecay(given.learning_rate, decay_steps=given.updates, end_learning_rate=0.0)
    optimizer = optimizers.AdamW(
        schedules.LinearWarmup(decay, warmup_steps=max(1, given.updates // 20)), weight_decay=0.01, global_clipnorm=1.0
    )
    gradients = Gradients(student)
    losses: list[float] = []
    steps = tqdm(batches(len(texts), given.batch_size, given.updates), total=given.updates, desc="learning")
    for update, rows in enumerate(steps, 1):
        chosen = [texts[i] for i in rows]
        wanted = teacher.encode(chosen, batch_size=given.batch_size, normalize_embeddings=True, on_truncation="ignore")
        inputs = encode(teacher.tokenizer, chosen, given.length)
        outputs, vjp = student.vjp(inputs, training=True, seed=update, outputs=["sequence_output"])
        loss, d_sequence = loss_and_gradient(outputs["sequence_output"], inputs["input_mask"], wanted)
        gradients.clear()
        vjp({"sequence_output": d_sequence}, into=gradients)
        optimizer.apply_gradients(student, gradients)
        losses.append(loss)
        steps.set_postfix(loss=f"{loss:.3f}")
        if update % given.every == 0 or update == given.updates:
            yield update, float(np.mean(losses))
            losses.clear()


def picture(curve: list[dict[str, float]], static: dict[str, float], path: Path) -> None:
    """Draw how student and teacher agree over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, title in (
        ("rank_correlation", "rank correlation of cosines"),
        ("recall_at_10", "recall of the teacher's top 10"),
    ):
        (line,) = axes.plot([row["updates"] for row in curve], [row[name] for row in curve], marker=".", label=title)
        axes.axhline(static[name], color=line.get_color(), linestyle=":", label=f"{title}, mean of word embeddings")
    axes.set(xlabel="updates", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Distil, compare, save."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    texts = given.texts.read_text().splitlines() if given.texts else installed_texts()
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    held_out, training = texts[:HELD_OUT], texts[HELD_OUT:]
    if not training:
        raise SystemExit(f"expected more than {HELD_OUT} texts, which are kept for the comparison; got {len(texts)}")
    teacher = TextEncoder(given.teacher, num_threads=given.threads, max_seq_length=given.length, pooling=None)
    student = student_of(teacher, given)
    print(f"{len(training)} texts to learn from, {len(held_out)} to compare")
    print(f"teacher: {teacher.encoder}\nstudent: {student}")

    encoder = TextEncoder(student, teacher.tokenizer, pooling="mean")
    true = teacher.encode(held_out, normalize_embeddings=True, on_truncation="ignore")
    static = compare(static_vectors(teacher, held_out), true)
    print("mean of word embeddings:", json.dumps(static))
    curve = []
    start = time.perf_counter()
    try:
        for update, loss in learn(student, teacher, training, given):
            vectors = encoder.encode(held_out, normalize_embeddings=True, on_truncation="ignore")
            minutes = (time.perf_counter() - start) / 60
            curve.append({"updates": update, "minutes": round(minutes, 1), "loss": loss, **compare(vectors, true)})
            tqdm.write(json.dumps(curve[-1]))
    except KeyboardInterrupt:
        print("interrupted: the student is saved as it is")

    student.save(given.output / "student.safetensors")
    teacher.tokenizer.save(str(given.output / "tokenizer.json"))
    rates = {"teacher": speed(teacher, held_out), "student": speed(encoder, held_out)}
    result = {"static": static, "curve": curve, "texts_per_second": rates}
    (given.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print("texts per second:", json.dumps(rates))
    if curve:
        picture(curve, static, given.output / "curve.png")
    print(f"student, tokenizer, result and curve saved to {given.output}/")


if __name__ == "__main__":
    main()
