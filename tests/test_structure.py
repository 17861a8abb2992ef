"""No two files import each other (`tests/structure.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import structure

ROOT = Path(__file__).parents[1]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


LIB = "mod shapes;\nmod user;\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # A tree: the user takes a name from the front door, and the front door from the file that defines it.
        (
            {
                "shapes/mod.rs": "mod square;\nmod side;\npub use square::Square;\npub use side::Side;",
                "shapes/square.rs": "use super::side::Side; // use crate::user::Text;\nstruct Square(Side);",
                "shapes/side.rs": "pub struct Side;\n#[cfg(test)]\nmod tests { use super::super::Square; }",
                "user.rs": 'use crate::shapes::{Side, Square as Box};\nconst S: &str = "crate::user::x";',
            },
            [],
        ),
        # Two files that take from each other.
        (
            {
                "shapes/mod.rs": "mod square;\nmod side;",
                "shapes/square.rs": "use super::side::{\n    self,\n    Side,\n};",
                "shapes/side.rs": "fn f() { crate::shapes::square::g() }",
                "user.rs": "",
            },
            [["src/shapes/side.rs", "src/shapes/square.rs"]],
        ),
        # A file that goes by its own package's front door.
        (
            {
                "shapes/mod.rs": "mod square;\nmod side;\npub use side::Side;",
                "shapes/square.rs": "use crate::shapes::Side;",
                "shapes/side.rs": "",
                "user.rs": "",
            },
            [["src/shapes/mod.rs", "src/shapes/square.rs"]],
        ),
        # By way of names that a front door passes on.
        (
            {
                "shapes/mod.rs": "mod square;\nmod side;\npub use side::Side;",
                "shapes/square.rs": "use crate::user::Text;",
                "shapes/side.rs": "",
                "user.rs": "mod inner { use super::super::shapes::square::Square; }",
            },
            [["src/shapes/square.rs", "src/user.rs"]],
        ),
    ],
)
def test_rust_circles_are_found(tmp_path: Path, files: dict[str, str], expected: list[list[str]]) -> None:
    source = write(tmp_path / "src", {"lib.rs": LIB, **files})
    assert structure.circles(structure.rust_graph(source)) == expected


@pytest.mark.parametrize(
    ("files", "type_checking", "expected"),
    [
        ({"__init__.py": "from .a import x", "a.py": "from . import b", "b.py": "import math"}, True, []),
        (
            {"__init__.py": "", "a.py": "from . import b", "b.py": "def f():\n    from p.a import x"},
            True,
            [["p/a.py", "p/b.py"]],
        ),
        ({"__init__.py": "from .a import x", "a.py": "from p import y"}, True, [["p/__init__.py", "p/a.py"]]),
        ({"__init__.py": "from .a import x", "a.py": "from p import _c", "_c.pyi": ""}, True, []),
        *(
            (
                {"__init__.py": "", "a.py": "import p.b", "b.py": "if TYPE_CHECKING:\n    from .a import x"},
                counted,
                [["p/a.py", "p/b.py"]] if counted else [],
            )
            for counted in (True, False)
        ),
    ],
)
def test_python_circles_are_found(
    tmp_path: Path, files: dict[str, str], type_checking: bool, expected: list[list[str]]
) -> None:
    package = write(tmp_path / "p", files)
    assert structure.circles(structure.python_graph(package, type_checking)) == expected


def test_a_circle_is_reported_with_the_imports_that_make_it(tmp_path: Path) -> None:
    package = write(tmp_path / "p", {"__init__.py": "", "a.py": "from . import b", "b.py": "from .a import x"})
    (text,) = structure.report(structure.python_graph(package), [])
    assert "circle of 2 files: p/a.py, p/b.py" in text
    assert "p/a.py -> p/b.py   (from . import b)" in text
    assert "p/b.py -> p/a.py   (from .a import x)" in text
    assert structure.report(structure.python_graph(package), ["q/"]) == []


@pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="needs the sources")
def test_there_are_no_circles() -> None:
    """In the whole core, the package and the benchmarks."""
    graph = structure.all_graphs()
    assert {name.split("/")[0] for name in graph} == {"src", "sparse_mixer", "benchmarks"}
    texts = structure.report(graph, [])
    assert not texts, "\n".join(texts)
