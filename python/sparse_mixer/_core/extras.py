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
