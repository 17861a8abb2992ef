"""A corpus of real text that every machine has: the documentation inside Python's own standard library.

It is read without importing or running any of it.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparse_mixer.text import train_tokenizer

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Passage(NamedTuple):
    """A piece of documentation and the top-level package or module of the standard library that it is from."""

    text: str
    package: str


def stdlib_passages(characters: int = 2000, limit: int | None = None) -> Iterator[Passage]:
    """Yield the docstrings of the standard library in passages, always in the same order for one Python version.

    Args:
        characters: docstrings of one file are joined until a passage has at least this many characters; shorter
            files give one shorter passage. 2000 characters are roughly 500 word pieces.
        limit: number of passages to stop at; None for all.

    Raises:
        FileNotFoundError: This Python has no source files of its library (as in some embedded builds).
    """
    root = Path(sysconfig.get_path("stdlib"))
    count = 0
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _NOT_LIBRARY.intersection(parts):
            continue
        for text in _joined(_docstrings(path), characters):
            yield Passage(text, parts[0].removesuffix(".py"))
            count += 1
            if count == limit:
                return
    if count == 0:
        raise FileNotFoundError(f"no documented source files of the standard library under {root}")


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a source file, from top to bottom; nothing if the file cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _joined(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Join neighbouring texts to pieces of at least `characters`, the last one excepted."""
    piece: list[str] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= characters:
            yield "\n\n".join(piece)
            piece, size = [], 0
    if piece:
        yield "\n\n".join(piece)


def tokenizer_of_run(texts: Iterable[str], folder: Path, vocab_size: int = 4096) -> Any:
    """Train a tokenizer and save it in `folder`; where there is the state of a run, load the one that it began with.

    Two tokenizers of the same texts can differ, and with them the inputs: a run resumes with its own only.
    """
    import tokenizers  # the corpus by itself does without

    path = folder / "tokenizer.json"
    if path.exists() and (folder / "state.npz").exists():
        return tokenizers.Tokenizer.from_file(str(path))
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
    tokenizer.save(str(path))
    return tokenizer
