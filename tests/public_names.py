"""The public names of the package with their signatures, read from the sources: nothing is imported.

`python tests/public_names.py --write` stores them in `public_names.txt`, which a test compares: who changes a public
name sees it in the diff, and so does whoever chooses the next version.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "sparse_mixer"
STORED = Path(__file__).with_name("public_names.txt")

# Names that a module imports when they are asked for, since a framework has to be there; and what defines them.
ON_DEMAND = {
    "sparse_mixer.keras.SparseMixer": "sparse_mixer.keras.tf_keras_layer",
    "sparse_mixer.sklearn.SparseMixerClassifier": "sparse_mixer.sklearn.classifier",
    "sparse_mixer.sklearn.SparseMixerFeatures": "sparse_mixer.sklearn.features",
    "sparse_mixer.torch.SparseMixer": "sparse_mixer.torch.module",
}

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_public(name: str) -> bool:
    """Whether no part of a dotted name is private."""
    return not any(part.startswith("_") for part in name.split("."))


def trees() -> dict[str, ast.Module]:
    """The syntax trees of all modules, private ones included, by name."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {module_name(file): ast.parse(file.read_text()) for file in files if file.name != "__main__.py"}


def public_modules() -> list[str]:
    """The names of all public modules. Files inside a package are its own business: it lists what is public."""
    return [name for name in trees() if is_public(name) and name.count(".") <= 1]


def imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Where names that a module imports from this package come from: module and name there."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


def resolved(all_trees: dict[str, ast.Module], module: str, name: str) -> tuple[str, Definition | ast.expr | None]:
    """What a name of a module is, followed through imports, and the module that defines it."""
    seen = set()
    while module in all_trees and (module, name) not in seen:
        seen.add((module, name))
        if f"{module}.{name}" in ON_DEMAND:
            module = ON_DEMAND[f"{module}.{name}"]
        own = definitions(all_trees[module])
        if name in own:
            return module, own[name]
        module, name = imported(all_trees[module]).get(name, ("", name))
    return "", None


def declared(tree: ast.Module) -> list[str] | None:
    """What `__all__` lists; None without one."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__" and node.value is not None:  # type: ignore[attr-defined]
            return [element.value for element in ast.walk(node.value) if isinstance(element, ast.Constant)]  # type: ignore[attr-defined]
    return None


def definitions(tree: ast.Module) -> dict[str, Definition | ast.expr | None]:
    """Classes, functions and constants of a module by name."""
    found: dict[str, Definition | ast.expr | None] = {}
    for node in tree.body:
        if isinstance(node, Definition):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node.value
    return found


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The arguments without types, with defaults."""
    given = function.args
    for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]:
        if argument is not None:
            argument.annotation = None
    return f"({ast.unparse(given)})"


def members(node: ast.ClassDef, module: str, all_trees: dict[str, ast.Module]) -> dict[str, str]:
    """Methods and properties of a class of `module` with signatures, those of its bases in this package included."""
    found: dict[str, str] = {}
    for base in reversed(node.bases):
        place, definition = resolved(all_trees, module, ast.unparse(base))
        if isinstance(definition, ast.ClassDef):
            found |= members(definition, place, all_trees)
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and (
            part.name in ("__init__", "__call__") or not part.name.startswith("_")
        ):
            decorators = {ast.unparse(decorator) for decorator in part.decorator_list}
            is_property = any(name.endswith(("property", ".setter")) for name in decorators)
            found[part.name] = "" if is_property else signature(part)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and is_public(part.target.id):
            found[part.target.id] = ""
    return found


def names() -> Iterator[str]:
    """A line per public name: modules, their own names, and members of classes."""
    all_trees = trees()
    for module in public_modules():
        tree = all_trees[module]
        yield module
        own, listed = definitions(tree), declared(tree)
        public = [name for name in own if not name.startswith("_")] if listed is None else listed
        for name in sorted(public):
            place, node = resolved(all_trees, module, name)
            if isinstance(node, ast.ClassDef):
                yield f"{module}.{name}"
                for member, arguments in sorted(members(node, place, all_trees).items()):
                    yield f"{module}.{name}.{member}{arguments}"
            elif isinstance(node, Definition):
                yield f"{module}.{name}{signature(node)}"
            else:
                yield f"{module}.{name}"


if __name__ == "__main__":
    text = "\n".join(names()) + "\n"
    if sys.argv[1:] == ["--write"]:
        STORED.write_text(text)
    else:
        print(text, end="")
