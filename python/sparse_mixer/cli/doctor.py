"""What the library sees of the machine it runs on: the facts that a report of a problem needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import sparse_mixer

EXTRAS = {
    "h5": "h5py",
    "jax": "jax",
    "keras": "tf-keras",
    "mpi": "mpi4py",
    "onnx": "onnx",
    "parquet": "pyarrow",
    "plot": "matplotlib",
    "progress": "tqdm",
    "ray": "ray",
    "serve": "starlette",
    "sklearn": "scikit-learn",
    "text": "tokenizers",
    "torch": "torch",
}
"""The distribution that each extra brings."""
_FRAMEWORKS = ("tensorflow", "tensorflow-cpu", "keras", "transformers", "onnxruntime", "openvino")
_VARIABLES = ("SPARSE_MIXER_", "OMP_", "KMP_", "MALLOC_", "TF_USE_LEGACY_KERAS", "KERAS_BACKEND")


def facts() -> dict[str, Any]:
    """Versions, processor, threads, memory, extras and variables, JSON-able."""
    installed = {name: _version(name) for name in _FRAMEWORKS}
    return {
        "sparse_mixer": sparse_mixer.__version__,
        "installed in": str(Path(sparse_mixer.__file__).parent),
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.python_compiler()})",
        "numpy": np.__version__,
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip() or "not glibc",
        "machine": platform.machine(),
        **{f"cpu.{key}": value for key, value in sparse_mixer.cpu_info().items()},
        "cpus usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": sparse_mixer.get_num_threads(),
        "memory": _memory(),
        **{f"env.{key}": os.environ[key] for key in sorted(os.environ) if key.startswith(_VARIABLES)},
        **{f"extra.{extra}": _extra(name) for extra, name in EXTRAS.items()},
        **{f"beside.{name}": version for name, version in installed.items() if version is not None},
    }


def as_text(found: dict[str, Any]) -> str:
    """A line per fact."""
    return "\n".join(
        f"{key:<22} {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in found.items()
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(name: str) -> str:
    version = _version(name)
    return f"{name} is not installed" if version is None else f"{name} {version}"


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not everywhere
        return "unknown"
    return f"{pages * size / 2**30:.1f} GiB"
