"""Pages of the site that are made: the reference of every public module, tutorials of notebooks, project pages."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import public_names  # noqa: E402

PROJECT = {"Changes": "CHANGELOG.md", "Contributing": "CONTRIBUTING.md", "Security": "SECURITY.md"}
TEXT_LIMIT = 4000
"""Characters of a printed output that a tutorial shows."""


def reference() -> dict[str, str]:
    """Path and text of the page of each public module."""
    modules = public_names.public_modules()
    first = "# Reference\n\nEvery public name, by module.\n\n"
    pages = {"reference/index.md": first + "".join(f"- [{name}]({name}.md)\n" for name in modules)}
    for name in modules:
        own = [
            f"{file}.{full.rpartition('.')[2]}"
            for full, file in public_names.ON_DEMAND.items()
            if full.rpartition(".")[0] == name
        ]
        pages[f"reference/{name}.md"] = "".join(f"::: {full}\n\n" for full in [name, *own])
    return pages


def tutorials() -> dict[str, str]:
    """Path and text of the page of each notebook."""
    return {f"tutorials/{file.stem}.md": _of_notebook(file) for file in sorted(ROOT.glob("examples/notebooks/*.ipynb"))}


def project() -> dict[str, str]:
    """Path and text of the files at the top of the repository that belong to the site."""
    pages = {}
    for name in PROJECT.values():
        text = (ROOT / name).read_text()
        for other in PROJECT.values():
            text = text.replace(f"]({other})", f"]({other.lower()})")
        pages[f"project/{name.lower()}"] = re.sub(r"\]\(docs/", "](../", text)
    return pages


def on_config(config: Any) -> Any:
    """Append what is made to the navigation."""

    def titled(pages: dict[str, str]) -> list[dict[str, str]]:
        return [{text.split("\n", 1)[0].lstrip("#: "): path} for path, text in pages.items()]

    # A page that nobody has given a place is a how-to.
    placed = json.dumps(config["nav"])
    for file in sorted((ROOT / "docs").glob("*.md")):
        if f'"{file.name}"' not in placed:
            (how_to,) = (section["How to"] for section in config["nav"] if "How to" in section)
            how_to.append({file.read_text().split("\n", 1)[0].lstrip("# "): file.name})
    made = tutorials()
    entries = [{"Tutorials": titled(made)}] if made else []
    config["nav"][1:1] = entries
    config["nav"] += [
        {"Reference": ["reference/index.md", *titled(reference())[1:]]},
        {"Project": [{title: f"project/{name.lower()}"} for title, name in PROJECT.items()]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add what is made to the pages."""
    from mkdocs.structure.files import File

    for path, text in {**reference(), **tutorials(), **project()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def _of_notebook(path: Path) -> str:
    """A notebook's cells with their outputs."""
    notebook = json.loads(path.read_text())
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?:\.\./)+docs/", "](../", source))
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
            parts += [text for output in cell.get("outputs", ()) if (text := _of_output(output))]
    if not parts[0].startswith("# "):
        parts.insert(0, f"# {path.stem.replace('_', ' ').capitalize()}")
    return "\n\n".join(parts) + "\n"


def _of_output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        image = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="figure" src="data:image/png;base64,{image}">'
    text = "".join(output.get("text") or data.get("text/plain") or "")
    return f"```text\n{text[:TEXT_LIMIT].rstrip()}\n```" if text.strip() else ""
