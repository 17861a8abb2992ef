"""Texts and tokens that encoders of sentences are called with: the docstrings of Python's own library."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.exported_files import trace
from examples.corpus import NOT_LIBRARY, docstrings

TASKS = {
    "W1": "32 x 128 tokens, sequences/s",
    "W2": "8 x 256 tokens, sequences/s",
    "W5": "8 x 512 tokens, sequences/s",
    "W4": "passages/s",
    "W3": "a query of 16 tokens, ms",
    "W3 text": "the same, from its text, ms",
}
"""What is measured, in the order of the table."""
SHAPES = {"W1": (32, 128), "W2": (8, 256), "W5": (8, 512), "W3": (1, 16)}
"""Tasks of given tokens, none of them padding: sequences and tokens of each, special ones included."""
BATCH = 32
"""Texts per pass."""
PASSAGE_TOKENS = (5, 246)
"""Fewest and most tokens of a passage, special ones included."""
QUERIES = 600
CALIBRATION = 128
"""Texts that post-training quantisation sees; they are among neither passages nor queries."""
COMPARED = (1000, 600)
"""Texts to compare float32 by, and the most tokens of one."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What an engine is called with: token ids int64 [N, S], or texts."""

    ids: np.ndarray | None = None
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SentenceLoad:
    """A folder of a sentence encoder, and what to call it with."""

    model: pathlib.Path
    tokens: np.ndarray
    """Token ids int64 of running text, without special ones."""
    special: tuple[int, int]
    """The tokens at the beginning and the end of a text."""
    texts: dict[str, tuple[str, ...]]
    """Texts of the other tasks by name."""

    def inputs(self, batch: str) -> Task:
        """Return what the task of this name is called with."""
        if batch not in SHAPES:
            return Task(texts=self.texts[batch])
        rows, length = SHAPES[batch]
        ids = np.empty((rows, length), np.int64)
        ids[:, 0], ids[:, -1] = self.special
        ids[:, 1:-1] = self.tokens[: rows * (length - 2)].reshape(rows, length - 2)
        return Task(ids=ids)

    def longest(self) -> int:
        """Tokens per text at most, special ones included, as the folder says."""
        about = json.loads((self.model / "sentence_bert_config.json").read_text())
        return int(about["max_seq_length"])

    def vector_size(self) -> int:
        """Numbers per vector."""
        return int(json.loads((self.model / "config.json").read_text())["hidden_size"])

    def export(self, path: str) -> None:
        """Write transformers' model with mean pooling and division by the length behind it, as an ONNX model.

        It has the inputs `input_ids` and `attention_mask`, int64 [N, S], and the vectors as its output.
        """
        import torch
        from transformers import AutoModel

        # Eager attention and the model's own mask are what ONNX Runtime's optimiser knows.
        encoder = AutoModel.from_pretrained(self.model, attn_implementation="eager", local_files_only=True).eval()

        class Sentences(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = encoder

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                hidden = self.encoder(
                    input_ids=input_ids, attention_mask=attention_mask, token_type_ids=torch.zeros_like(input_ids)
                ).last_hidden_state
                mask = attention_mask.to(torch.float32)
                pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
                return torch.nn.functional.normalize(pooled, dim=1)

        ids = torch.ones((2, 5), dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        trace(Sentences(), inputs, {"sentence_embedding": {0: "batch"}}, path)

    def calibration(self) -> list[dict[str, np.ndarray]]:
        """Return the inputs that post-training quantisation sees."""
        tokenizer = read_tokenizer(self.model, self.longest())
        rows = [np.asarray([tokenizer.encode(text).ids], np.int64) for text in self.texts["calibration"]]
        return [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in rows]


def make_load(model: pathlib.Path, passages: int) -> SentenceLoad:
    """Return tasks for the encoder in `model`: always the same for one Python version and tokenizer.

    Args:
        model: a folder of sentence-transformers with a ``tokenizer.json``.
        passages: texts of the task "W4".

    Raises:
        ValueError: This Python's library has fewer docstrings of the lengths that are wanted.
    """
    tokenizer = read_tokenizer(model, None)
    first, last = tokenizer.encode("").ids
    texts = library_docstrings()
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]
    low, high = PASSAGE_TOKENS
    fitting = [text for text, count in zip(texts, counts, strict=True) if low <= count <= high]
    # The same for any number of passages: quantised models are kept.
    calibration, fitting = fitting[:CALIBRATION], fitting[CALIBRATION:]
    rest = fitting[passages:]
    if len(rest) < QUERIES:
        raise ValueError(f"passages: got {passages}, expected at most {len(fitting) - QUERIES}")
    # The first paragraph of a docstring is what one might search for.
    questions = [" ".join(text.split("\n\n")[0].split()) for text in rest]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(questions)]
    running = "\n".join(texts[:1000])
    encoding = tokenizer.encode(running, add_special_tokens=False)
    return SentenceLoad(
        model,
        np.asarray(encoding.ids[:8192], np.int64),
        (first, last),
        {
            "W4": tuple(fitting[:passages]),
            "first passages": tuple(fitting[: min(passages, 2 * BATCH)]),
            "W3 text": (questions[lengths.index(SHAPES["W3"][1])],),
            "queries": tuple(questions[:QUERIES]),
            "calibration": tuple(calibration),
            "lengths": tuple(_of_lengths(running, encoding.offsets, *COMPARED)),
        },
    )


def read_tokenizer(model: pathlib.Path, longest: int | None) -> Any:
    """Return the `tokenizers.Tokenizer` of a folder, which cuts texts to `longest` tokens and pads none."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if longest is not None:
        tokenizer.enable_truncation(longest)
    return tokenizer


@functools.cache
def library_docstrings() -> tuple[str, ...]:
    """Return the docstrings of the standard library, each once, shuffled, always in the same order."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    texts: set[str] = set()
    for path in root.rglob("*.py"):
        if not NOT_LIBRARY.intersection(path.relative_to(root).parts):
            texts.update(docstrings(path))
    return tuple(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))


def _of_lengths(text: str, offsets: Sequence[tuple[int, int]], count: int, most: int) -> Iterator[str]:
    """Yield `count` pieces of 1 to `most` tokens, all lengths alike often, from all over `text`."""
    for number in range(count):
        tokens = 1 + number * most // count
        start = number * 7919 % (len(offsets) - tokens)
        yield text[offsets[start][0] : offsets[start + tokens - 1][1]]
