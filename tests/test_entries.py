"""Whatever Python calls is guarded, so that a bug in it is an ordinary exception."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "src" / "python"
# They hand out what is there, or wait for a fork, and have nothing that can fail.
PLAIN = {
    "__len__",
    "after_fork",
    "before_fork",
    "config",
    "discard",
    "dtype",
    "dtype_mismatches",
    "entries",
    "format",
    "get_num_threads",
    "inject_panic",
    "isa",
    "iterations",
    "loaded",
    "metadata",
    "missing",
    "num_threads",
    "path",
    "paths",
    "py_shape",
    "reads",
    "release_scratch",
    "root",
    "scheme",
    "set_num_threads",
    "shape_mismatches",
    "temporary",
    "unexpected",
    "weight_specs",
    "zeros",
}
METHODS = re.compile(r"^#\[pymethods\]\nimpl [^\n]*\{\n(.*?)^\}", re.M | re.S)
METHOD = re.compile(r"^    (?:pub )?fn (\w+).*?^    \}", re.M | re.S)
FUNCTION = re.compile(r"^( *)#\[pyfunction\]\n(?: *#\[.*\]\n)*\1(?:pub )?fn (\w+).*?^\1\}", re.M | re.S)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the sources")
def test_every_entry_is_guarded() -> None:
    bodies = []
    for path in sorted(FOLDER.glob("*.rs")):
        text = path.read_text()
        for block in METHODS.findall(text):
            bodies += [(match[1], match[0]) for match in METHOD.finditer(block)]
        bodies += [(match[2], match[0]) for match in FUNCTION.finditer(text)]
    bare = {name for name, body in bodies if " guard(" not in body}
    assert bare <= PLAIN
    assert len(bodies) - len(bare) > 30
