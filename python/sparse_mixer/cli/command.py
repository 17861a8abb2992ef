"""The command ``sparse-mixer``: weight files, texts, the machine. The parts for texts are in other files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import sparse_mixer
from sparse_mixer import InternalError, SparseMixer
from sparse_mixer._core.json_text import mapping_of
from sparse_mixer.checkpoints import CheckpointError
from sparse_mixer.checkpoints.opening import open_weights
from sparse_mixer.checkpoints.presets import PRESETS
from sparse_mixer.checkpoints.stored_config import stored_config
from sparse_mixer.checkpoints.weight_files import WeightFile
from sparse_mixer.cli import completion, doctor, serving, texts
from sparse_mixer.cli.tree import tree

EXIT_OK = 0
EXIT_PROBLEM = 1
"""The command ran and found something wrong."""
EXIT_USAGE = 2
"""The command could not run: bad arguments, files that are missing or not readable."""
_EXIT_INTERRUPTED = 130

_EPILOG = """\
exit codes: 0 success, 1 a problem was found, 2 bad arguments or unreadable files, 130 interrupted
"""
_FORMATS = """\
files that are read: safetensors (our own format included), .npz, TensorFlow checkpoints (prefix, .index file or
folder) and SavedModel folders, Keras .weights.h5, .h5 and .keras (extra "h5"), Flax msgpack files and the folders of
training steps, folders of Hugging Face, google-research/bert and KerasHub. Formats are told by content. No file is
executed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What stands behind ``sparse-mixer``; None takes it from the process.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:
        # Whoever reads the output has seen enough; the interpreter shall not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except (CheckpointError, ValueError, TypeError, OSError, ImportError, InternalError) as error:
        print(f"sparse-mixer: {error}", file=sys.stderr)
        return EXIT_USAGE
    except MemoryError:
        print("sparse-mixer: not enough memory", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparse-mixer",
        description="Sparse Mixer encoders on CPUs: weight files, texts, measurements, the machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparse-mixer {sparse_mixer.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    def command(name: str, run: Any, summary: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    inspect = command(
        "inspect",
        _inspect,
        "show the tensors of a weight file as a tree",
        "Show what a file says of itself, and the tree of its tensors' names with type, shape and size of each.\n\n"
        f"{_FORMATS}",
    )
    inspect.add_argument("path", help="file or folder")
    inspect.add_argument("--json", action="store_true", help="print JSON, with full names")

    verify = command(
        "verify",
        _verify,
        "check a weight file: checksums, finite numbers, fit",
        "Read every tensor of a file: checksums, where the format has them, must match and numbers be finite. If the\n"
        "file has a configuration, or one is given, its weights must fit the encoder.\n\n"
        f"{_FORMATS}",
    )
    verify.add_argument("path", help="file or folder")
    _add_config(verify)

    convert = command(
        "convert",
        _convert,
        "convert weights to safetensors, .npz or .weights.h5",
        "Load an encoder and save it in another format: .npz and .weights.h5 (which TensorFlow reads) by the ending\n"
        "of the target, our own safetensors format, which holds the configuration, for any other.\n\n"
        "  sparse-mixer convert sm_base/ base.safetensors --preset sparse_mixer_base --set pad_id=3\n"
        "  sparse-mixer convert ckpt-1000 mine.safetensors --config arguments.json\n\n"
        f"{_FORMATS}",
    )
    convert.add_argument("source", help="file or folder to read")
    convert.add_argument("target", help="file to write; replaced in one step if it exists")
    _add_config(convert)

    texts.add_commands(command)
    serving.add_command(command)

    bench = command(
        "bench",
        _bench,
        "measure the speed of encoding on this machine",
        "Encode random ids and print the median time per batch and tokens per second.",
    )
    bench.add_argument("path", nargs="?", help="encoder to measure; without one, Sparse Mixer Base with random weights")
    _add_config(bench)
    bench.add_argument("--batch", type=int, default=1, help="examples per batch (default 1)")
    bench.add_argument("--repeats", type=int, default=10, help="measured batches (default 10)")
    bench.add_argument("--threads", type=int, default=None, help="most threads (default: automatic)")
    bench.add_argument("--dtype", default=None, help="storage type of the weights: float32, bfloat16, float16, int8")

    examine = command(
        "doctor",
        _doctor,
        "show what the library sees of this machine",
        "Print versions, CPU features, threads, memory and extras: what a report of a problem needs.",
    )
    examine.add_argument("--json", action="store_true", help="print JSON")

    complete = command(
        "completion",
        _completion,
        "print a script that makes a shell complete this command",
        "Print a script for bash, zsh or fish; its first lines say where to put it.\n\n"
        '  eval "$(sparse-mixer completion bash)"',
    )
    complete.add_argument("shell", choices=completion.SHELLS)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--config",
        help="arguments of SparseMixer as JSON, or a file with them, e.g. '{\"vocab_size\": 30522}'; "
        "for files that hold weights alone",
    )
    sources.add_argument(
        "--flax-config", help="keys of the paper's JAX code as JSON, or a file with them; for its checkpoints"
    )
    sources.add_argument("--preset", choices=PRESETS, help="a published configuration")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of SparseMixer that replaces the configuration's, e.g. pad_id=3; may be repeated",
    )
    parser.add_argument("--prefix", help="where in the file the encoder is, if there are several")


def _json(option: str, text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        try:
            with open(text, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise ValueError(f"{option}: neither a JSON object nor a file with one: {error}") from None
    return mapping_of(text, option)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What ``--set`` says; values are JSON, or else text."""
    settings = {}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUE, got {setting!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _load(path: str, options: argparse.Namespace, **changes: Any) -> SparseMixer:
    changes = {**_settings(options), **changes}
    if options.preset is not None:
        return SparseMixer.from_preset(options.preset, path, prefix=options.prefix, **changes)
    if options.flax_config is not None:
        config = _json("--flax-config", options.flax_config)
        encoder = SparseMixer.from_flax(path, config, prefix=options.prefix, **changes)
        if encoder.ignored_config_keys:
            print(f"--flax-config: no part of the encoder: {', '.join(encoder.ignored_config_keys)}")
        return encoder
    given = None if options.config is None else _json("--config", options.config)
    return SparseMixer.load(path, config=given, prefix=options.prefix, **changes)


def _random(options: argparse.Namespace, **changes: Any) -> SparseMixer:
    """An encoder with random weights: the preset, the configuration, or else Sparse Mixer Base."""
    changes = {**_settings(options), **changes}
    if options.flax_config is not None:
        raise ValueError("--flax-config: says how to read a checkpoint, but there is none")
    if options.preset is not None:
        return SparseMixer.from_preset(options.preset, **changes)
    config = {"vocab_size": 30522} if options.config is None else _json("--config", options.config)
    return SparseMixer(**{**config, **changes})


# Commands ---------------------------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> int:
    with contextlib.closing(open_weights(options.path)) as file:
        return _list(file, options)


def _list(file: WeightFile, options: argparse.Namespace) -> int:
    entries: list[dict[str, Any]] = [
        {"name": name, "dtype": dtype, "shape": list(shape), "bytes": _byte_count(dtype, shape)}
        for name, dtype, shape in file.entries()
    ]
    total = sum(entry["bytes"] or 0 for entry in entries)
    if options.json:
        document = {"path": file.path, "format": file.format, "metadata": dict(file.metadata), "tensors": entries}
        print(json.dumps(document, indent=2))
        return EXIT_OK
    print(f"{file.path}: {file.format}, {len(entries)} tensors, {_readable(total)}")
    for key, value in sorted(file.metadata.items()):
        print(f"  {key}: {value}")
    lines = tree([(entry["name"], (entry["dtype"], str(entry["shape"])), entry["bytes"] or 0) for entry in entries])
    width = max((len(name) for name, _, _, _ in lines), default=0)
    for name, cells, tensors, size in lines:
        what = f"({tensors} tensors)" if cells is None else f"{cells[0]:<9} {cells[1]}"
        print(f"{name:<{width}}  {what:<30} {_readable(size):>10}")
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    problems, tensors = [], 0
    try:
        with contextlib.closing(open_weights(options.path)) as file:
            tensors = len(file.entries())
            print(f"checksums: {'checked' if _has_checksums(file) else 'there are none in this file'}")
            problems = _damaged(file)
            given = (options.config, options.flax_config, options.preset)
            has_config = any(config is not None for config in given) or stored_config(file, options.path) is not None
        if not has_config:
            print("no configuration: whether the weights fit an encoder is not checked (see --config, --preset)")
        elif not problems:
            encoder = _load(options.path, options)
            print(encoder.load_report(options.path, prefix=options.prefix))
            print(f"fits: {encoder!r}")
    except CheckpointError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{options.path}: {tensors} tensors, {len(problems)} problems")
    return EXIT_PROBLEM if problems else EXIT_OK


def _has_checksums(file: WeightFile) -> bool:
    """Whether reading a tensor compares a checksum: of safetensors files only ours have them."""
    return file.format in ("npz", "tensor_bundle", "keras") or file.metadata.get("format") == "sparse_mixer"


def _damaged(file: WeightFile) -> list[str]:
    """One text for each tensor that cannot be read or has numbers that are not finite."""
    problems = []
    for index, (name, dtype, shape) in enumerate(file.entries()):
        if _byte_count(dtype, shape) is None:
            continue
        try:
            array = file.read(index)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            problems.append(f"{name}: {int((~np.isfinite(array)).sum())} numbers are not finite")
    return problems


def _convert(options: argparse.Namespace) -> int:
    encoder = _load(options.source, options)
    encoder.save(options.target)
    print(f"{options.target}: {encoder!r}")
    return EXIT_OK


def _bench(options: argparse.Namespace) -> int:
    if options.batch < 1 or options.repeats < 1:
        raise ValueError("--batch and --repeats must be at least 1")
    changes: dict[str, Any] = {} if options.dtype is None else {"dtype": options.dtype}
    changes["num_threads"] = options.threads
    encoder = _random(options, **changes) if options.path is None else _load(options.path, options, **changes)
    arguments = encoder.arguments
    random = np.random.default_rng(0)
    shape = (options.batch, arguments.max_sequence_length)
    inputs = {
        "input_word_ids": random.integers(0, arguments.vocab_size, shape, dtype=np.int32),
        "input_mask": np.ones(shape, np.int32),
        "input_type_ids": np.zeros(shape, np.int32),
    }
    encoder(inputs, outputs=("pooled_output",))
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        encoder(inputs, outputs=("pooled_output",))
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(f"{encoder!r}")
    print(f"isa {encoder.isa}, {encoder.num_threads} threads, batch {options.batch}")
    print(
        f"median {median * 1e3:.2f} ms, fastest {min(times) * 1e3:.2f} ms, {np.prod(shape) / median:,.0f} tokens/s "
        f"({options.repeats} batches)"
    )
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    found = doctor.facts()
    print(json.dumps(found, indent=2) if options.json else doctor.as_text(found))
    return EXIT_OK


def _completion(options: argparse.Namespace) -> int:
    print(completion.script(_parser(), options.shell), end="")
    return EXIT_OK


def _byte_count(dtype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor; None for a type that is not read."""
    try:
        item = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    except TypeError:
        return None
    if np.dtype("V" if dtype == "bfloat16" else dtype).kind not in "fiubV":
        return None
    count = item
    for size in shape:
        count *= size
    return count


def _readable(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
