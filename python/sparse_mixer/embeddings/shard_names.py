"""Which files are meant, and where their vectors go."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from sparse_mixer._core.paths import PathLike, file_name
from sparse_mixer.embeddings.sources import FORMATS
from sparse_mixer.embeddings.targets import ENDINGS


def source_files(paths: Sequence[PathLike]) -> list[str]:
    """Files that are named, match a pattern, or lie in a folder; those of each entry in the order of their names.

    Raises:
        ValueError: An entry that stands for no file.
        FileNotFoundError: A file that is not there.
    """
    files: list[str] = []
    for path in paths:
        name = file_name(path, "paths")
        if os.path.isdir(name):
            inside = sorted(os.listdir(name))
            found = [os.path.join(name, file) for file in inside if file.removesuffix(".gz").endswith(FORMATS)]
        elif os.path.exists(name) or not glob.has_magic(name):
            found = [name]
        else:
            found = sorted(glob.glob(name))
        if not found:
            raise ValueError(f"{name}: no such files")
        files += found
    missing = next((file for file in files if not os.path.isfile(file)), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing}: no such file")
    return files


def targets_in(folder: str, sources: Sequence[str], form: str = "parquet") -> list[str]:
    """A file in `folder` for each source, of its name with another ending; the folder is made.

    Raises:
        ValueError: Two sources of one name; an unknown kind of file; the folder is a file.
    """
    if f".{form}" not in ENDINGS:
        raise ValueError(f"format: got {form!r}, expected one of {[ending[1:] for ending in ENDINGS]}")
    if os.path.isfile(folder):
        raise ValueError(f"{folder}: is a file; several inputs need a folder")
    names = [f"{os.path.basename(file).partition('.')[0]}.{form}" for file in sources]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"input: two files would be written to {os.path.join(folder, name)}")
        seen.add(name)
    os.makedirs(folder, exist_ok=True)
    return [os.path.join(folder, name) for name in names]
