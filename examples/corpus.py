"""A corpus of real text that every machine has: the documentation inside Python's library and installed packages.

It is read without importing or running any of it.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparse_mixer.text import load_tokenizer

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
"""Folders beside the standard library's own files."""


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
        if NOT_LIBRARY.intersection(parts):
            continue
        for text in _joined(docstrings(path), characters):
            yield Passage(text, parts[0].removesuffix(".py"))
            count += 1
            if count == limit:
                return
    if count == 0:
        raise FileNotFoundError(f"no documented source files of the standard library under {root}")


def sentence_halves() -> list[tuple[str, str]]:
    """Return the sentences of the standard library's docstrings, each cut in the middle; without case and full stop.

    Sentences have 8 to 30 words; each is there once, always in the same order for one Python version.
    """
    halves: dict[tuple[str, str], None] = {}
    for passage in stdlib_passages(characters=1):
        if passage.package == "encodings":  # a hundred times nearly the same
            continue
        for paragraph in passage.text.split("\n\n"):
            line = " ".join(paragraph.split())
            if not _is_prose(line):
                continue
            for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", line):
                words = sentence.rstrip(".!?:").lower().split()
                if 8 <= len(words) <= 30:
                    middle = len(words) // 2
                    halves[" ".join(words[:middle]), " ".join(words[middle:])] = None
    return list(halves)


def installed_texts(characters: int = 200) -> list[str]:
    """Return pieces of the docstrings of the standard library and of all installed packages, each once, sorted.

    Args:
        characters: lines of a docstring are joined until a piece has at least this many characters.
    """
    texts: set[str] = set()
    for root in {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}:
        for path in Path(root).rglob("*.py"):
            for docstring in docstrings(path):
                texts.update(" ".join(piece.split()) for piece in _joined(docstring.splitlines(), characters))
    return sorted(text for text in texts if _is_prose(text))


def _is_prose(text: str) -> bool:
    """Whether it is neither a table, nor a drawing, nor an example of code."""
    return len(re.findall("[A-Za-z ]", text)) > 0.85 * len(text)


def docstrings(path: Path) -> Iterator[str]:
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


def shipped_tokenizer() -> Any:
    """Return a lower-casing tokenizer of 4,096 word pieces of such text.

    Its vocabulary is a file beside this one, for the examples to repeat to the bit: the `tokenizers` package does not
    learn the same pieces of the same texts every time.
    """
    return load_tokenizer(Path(__file__).with_name("vocab.txt"))
