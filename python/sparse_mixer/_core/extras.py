"""Optional dependencies: imported when needed, with an error that says which extra brings them."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import and return `module`.

    Args:
        module: dotted name.
        extra: the extra of this package that installs it.

    Raises:
        ImportError: It is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        message = f'{error.name} is not installed; it comes with: pip install "sparse_mixer[{extra}]"'
        raise ImportError(message, name=error.name) from error


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, of a size in inches, that notebooks show by themselves.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("matplotlib.figure", "plot")
    from sparse_mixer._core.figure import Figure  # imports matplotlib

    return Figure(figsize=(width, height), layout="constrained")
