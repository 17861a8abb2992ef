"""Finds files that import each other in a circle, in the Rust core and in Python packages.

    python tests/structure.py                 # all of src, python/sparse_mixer and benchmarks
    python tests/structure.py src/kernels     # only circles that pass through these folders
    python tests/structure.py --type-checking # Python imports under `if TYPE_CHECKING:` count, too

Prints each circle: its files, and one shortest walk round it with the imports that make it. Exits with 1 if there is
any.

A file depends on the file that *defines* what it uses: re-exports are followed. One exception: a file that takes a name
from the front door of a package that it lies in itself (`mod.rs`, `__init__.py`) depends on the front door, and that
depends on every file of the package, so this is a circle. In Rust, modules under `#[cfg(test)]` do not count.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]

Names = tuple[str, ...]
# From a file to the files that it depends on, each with one import that says so.
Graph = Mapping[str, Mapping[str, str]]


# ---------------------------------------------------------------------------------------------------------- Rust


@dataclass
class RustModule:
    """A file of the core."""

    path: Path
    children: set[str] = field(default_factory=set)
    # Names that the file imports, to the absolute path of each.
    imports: dict[str, Names] = field(default_factory=dict)
    # Absolute paths that the file mentions.
    mentions: set[Names] = field(default_factory=set)


TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/"
    r"|b?r(?P<hashes>#*)\".*?\"(?P=hashes)"
    r"|b?\"(?:\\.|[^\"\\])*\""
    r"|b?'(?:\\[^\n]{1,9}?|[^\\'\n])'",
    re.S,
)
VISIBILITY = re.compile(r"\bpub\(in [^)]*\)")
TEST_MODULE = re.compile(r"#\[cfg\((?:test|all\(test[^\]]*)\)\]\s*(?:#\[[^\]]*\]\s*)*mod\s+\w+\s*(;|\{)")
INLINE_MODULE = re.compile(r"\bmod\s+(\w+)\s*\{")
CHILD = re.compile(r"\bmod\s+(\w+)\s*;")
USE = re.compile(r"\buse\s+([^;]+);")
INLINE_PATH = re.compile(r"(?<![\w:])((?:crate|self|super)(?:\s*::\s*\w+)+)")


def end_of_block(text: str, start: int) -> int:
    """Just behind the brace that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at + 1
    raise ValueError("a brace is not closed")


def rust_code(path: Path) -> str:
    """The file without comments, texts and tests."""
    text = VISIBILITY.sub(" ", TOKEN.sub(" ", path.read_text(encoding="utf-8")))
    while found := TEST_MODULE.search(text):
        end = found.end() if found.group(1) == ";" else end_of_block(text, found.end() - 1)
        text = text[: found.start()] + text[end:]
    return text


def use_tree(text: str) -> Iterator[tuple[Names, str]]:
    """The paths of a `use` declaration, each with the name that it gets."""
    text = text.strip()
    brace = text.find("{")
    if brace < 0:
        path, _, name = text.partition(" as ")
        parts = tuple(part.strip() for part in path.split("::") if part.strip())
        if parts[-1] == "self":
            parts = parts[:-1]
        yield parts, name.strip() or parts[-1]
        return
    prefix = tuple(part.strip() for part in text[:brace].split("::") if part.strip())
    depth, item = 0, ""
    for char in text[brace + 1 : text.rindex("}")] + ",":
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            if item.strip() == "self":
                yield prefix, prefix[-1]
            elif item.strip():
                for parts, name in use_tree(item):
                    yield (*prefix, *parts), name
            item = ""
        else:
            item += char


def absolute(module: Names, children: set[str], path: Names) -> Names | None:
    """The path from the root of the crate; `None` for those of other crates."""
    if path[0] == "crate":
        return path[1:]
    if path[0] in ("self", "super"):
        while path and path[0] in ("self", "super"):
            module = module[:-1] if path[0] == "super" else module
            path = path[1:]
        return module + path
    return module + path if path[0] in children else None


def collect(module: RustModule, name: Names, text: str, own: bool) -> None:
    """Adds what the code `text` of the module `name` mentions.

    If the module is the file's `own`, others may take from it what it imports.
    """
    children = module.children if own else set()
    for tree in USE.findall(text):
        for parts, alias in use_tree(tree):
            if (target := absolute(name, children, parts)) is not None:
                if own and parts[-1] != "*":
                    module.imports[alias] = target
                module.mentions.add(target)
    for mention in INLINE_PATH.findall(USE.sub(" ", text)):
        parts = tuple(part.strip() for part in mention.split("::"))
        if target := absolute(name, children, parts):
            module.mentions.add(target)


def read_rust(source: Path) -> dict[Names, RustModule]:
    """All modules of the crate whose root is `source / "lib.rs"`."""
    modules: dict[Names, RustModule] = {}
    waiting: list[tuple[Names, Path]] = [((), source / "lib.rs")]
    while waiting:
        name, path = waiting.pop()
        module = modules[name] = RustModule(path)
        text = rust_code(path)
        while found := INLINE_MODULE.search(text):
            # A module inside the file: what it mentions, the file mentions.
            end = end_of_block(text, found.end() - 1)
            collect(module, (*name, found.group(1)), text[found.end() : end - 1], own=False)
            text = text[: found.start()] + text[end:]
        folder = path.parent if path.name in ("mod.rs", "lib.rs") else path.with_suffix("")
        for child in CHILD.findall(text):
            module.children.add(child)
            flat, nested = folder / f"{child}.rs", folder / child / "mod.rs"
            waiting.append(((*name, child), flat if flat.exists() else nested))
        collect(module, name, text, own=True)
    return modules


def definition(modules: dict[Names, RustModule], user: Names, path: Names, seen: frozenset[Names]) -> Names:
    """The module on which `user` depends if it mentions the absolute `path`."""
    at = 0
    while at < len(path) and path[: at + 1] in modules:
        at += 1
    module, rest = path[:at], path[at:]
    inside = user[:at] == module
    if not rest or rest[0] == "*" or inside or path in seen:
        return module
    imports = modules[module].imports
    if rest[0] in imports:
        return definition(modules, user, imports[rest[0]] + rest[1:], seen | {path})
    return module


def rust_graph(source: Path) -> dict[str, dict[str, str]]:
    """Which file of the core depends on which."""
    modules = read_rust(source)
    graph: dict[str, dict[str, str]] = {}
    for name, module in modules.items():
        edges = graph[str(module.path.relative_to(source.parent))] = {}
        for path in sorted(module.mentions):
            target = modules[definition(modules, name, path, frozenset())].path
            edges.setdefault(str(target.relative_to(source.parent)), "::".join(("crate", *path)))
        for child in sorted(module.children):
            target = modules[*name, child].path
            edges.setdefault(str(target.relative_to(source.parent)), f"mod {child}")
        edges.pop(str(module.path.relative_to(source.parent)), None)
    return graph


# -------------------------------------------------------------------------------------------------------- Python


def python_imports(tree: ast.AST, type_checking: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports of a module, also those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not type_checking:
            for other in node.orelse:
                yield from python_imports(ast.Module([other], []), type_checking)
        else:
            yield from python_imports(node, type_checking)


def python_graph(package: Path, type_checking: bool = False) -> dict[str, dict[str, str]]:
    """Which file of the package depends on which."""
    files: dict[Names, Path] = {}
    # A stub stands for a compiled module.
    for path in sorted([*package.rglob("*.pyi"), *package.rglob("*.py")]):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[parts[:-1] if parts[-1] == "__init__" else parts] = path
    graph: dict[str, dict[str, str]] = {}
    for name, path in files.items():
        edges = graph[str(path.relative_to(package.parent))] = {}
        home = name if path.name == "__init__.py" else name[:-1]
        for node in python_imports(ast.parse(path.read_text(encoding="utf-8")), type_checking):
            targets: list[Names] = []
            if isinstance(node, ast.Import):
                targets = [tuple(alias.name.split(".")) for alias in node.names]
            else:
                base = tuple((node.module or "").split(".")) if node.module else ()
                if node.level:
                    base = home[: len(home) - node.level + 1] + base
                targets = [(*base, alias.name) for alias in node.names]
            for target in targets:
                while target and target not in files:
                    target = target[:-1]
                if target and target != name:
                    edges.setdefault(str(files[target].relative_to(package.parent)), ast.unparse(node))
    return graph


# ------------------------------------------------------------------------------------------------------- circles


def reachable(graph: Graph, start: str) -> set[str]:
    """All files on which `start` depends, directly or not."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), {}):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def circles(graph: Graph) -> list[list[str]]:
    """The largest sets of files each of which depends on all others, itself included."""
    below = {name: reachable(graph, name) for name in graph}
    found: list[list[str]] = []
    seen: set[str] = set()
    for name in sorted(graph):
        if name not in seen and name in below[name]:
            found.append(sorted(other for other in below[name] if name in below.get(other, ())))
            seen.update(found[-1])
    return found


def walk_round(graph: Graph, circle: list[str]) -> list[tuple[str, str, str]]:
    """The shortest walk from a file of the circle back to it: from where, to where, by which import."""
    best: list[tuple[str, str, str]] = []
    for start in circle:
        came: dict[str, tuple[str, str]] = {}
        waiting = deque([start])
        while waiting and start not in came:
            name = waiting.popleft()
            for target, why in graph[name].items():
                if target in circle and target not in came:
                    came[target] = (name, why)
                    waiting.append(target)
        walk: list[tuple[str, str, str]] = []
        at = start
        while not walk or at != start:
            before, why = came[at]
            walk.insert(0, (before, at, why))
            at = before
        if not best or len(walk) < len(best):
            best = walk
    return best


def report(graph: Graph, within: list[str]) -> list[str]:
    """A text for each circle with a file in one of the folders `within` (in any, if the list is empty)."""
    texts = []
    for circle in circles(graph):
        if within and not any(name.startswith(folder) for name in circle for folder in within):
            continue
        steps = (f"    {a} -> {b}   ({why})" for a, b, why in walk_round(graph, circle))
        texts.append("\n".join([f"circle of {len(circle)} files: {', '.join(circle)}", *steps]))
    return texts


def all_graphs(type_checking: bool = False) -> dict[str, dict[str, str]]:
    """The graphs of the core, the Python package and the benchmarks in one."""
    return {
        **rust_graph(ROOT / "src"),
        **python_graph(ROOT / "python" / "sparse_mixer", type_checking),
        **python_graph(ROOT / "benchmarks", type_checking),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Finds files that import each other in a circle.")
    parser.add_argument("within", nargs="*", help="folders as printed, for example src/kernels or sparse_mixer/models")
    parser.add_argument("--type-checking", action="store_true", help="count Python imports that only type checkers see")
    arguments = parser.parse_args()
    texts = report(all_graphs(arguments.type_checking), arguments.within)
    print(*texts, f"{len(texts)} import circles", sep="\n")
    return 1 if texts else 0


if __name__ == "__main__":
    sys.exit(main())
