"""Damages weight files of every format at random and reads them; run as a script it does so as often as asked.

::

    python tests/damaged_files.py --count 500            # every format
    python tests/damaged_files.py --count 500 --format h5 --seed 3

A damaged file must give a `CheckpointError` or `OSError` that names it, or load (where a format has no checksums, or
the damage hit bytes that mean nothing). Any other exception, more than 10 seconds or more than 64 MB beyond the file's
size ends the script with code 1, a crash with a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
from foreign_files import BERT, write_tf_model
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer.checkpoints.opening import open_weights

GOLDEN = Path(__file__).parent / "golden"
MOST_BEYOND_FILE = 64 << 20
MOST_SECONDS = 10.0
# Numbers that counts, lengths and offsets should not be.
HOSTILE = [0, 1, 0x7F, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**62, 2**63 - 1, 2**64 - 1]


def _encoder() -> SparseMixer:
    return SparseMixer(**json.loads((GOLDEN / "checkpoints" / "config.json").read_text()))


def _own(folder: Path) -> Path:
    path = folder / "own.safetensors"
    _encoder().save(path)
    return path


def _packed(folder: Path) -> Path:
    path = folder / "packed.safetensors"
    _encoder().astype("int8").save(path, packed=True)
    return path


def _packed_without_checksums(folder: Path) -> Path:
    """As another tool would write it: damage reaches the descriptions."""
    path = _packed(folder)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    kept = {key: text for key, text in header["__metadata__"].items() if "crc32c" not in key}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, kept | {"format": "other"})
    return path


def _foreign(folder: Path) -> Path:
    path = folder / "foreign.safetensors"
    with np.load(GOLDEN / "checkpoints" / "weights.npz") as arrays:
        safetensors.numpy.save_file(dict(arrays), path)
    return path


def _deflated(folder: Path) -> Path:
    path = folder / "deflated.npz"
    with np.load(GOLDEN / "checkpoints" / "weights.npz") as arrays:
        np.savez_compressed(path, **arrays)
    return path


def _keras(folder: Path) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.write(GOLDEN / "checkpoints" / "encoder.weights.h5", "model.weights.h5")
    return path


def _shards(folder: Path) -> Path:
    path = folder / "hf_shards"
    path.mkdir()
    source = GOLDEN / "checkpoints" / "hf_bert"
    shutil.copy(source / "config.json", path)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    for number in (1, 2):
        part = {name: tensors[name] for name in sorted(tensors)[number - 1 :: 2]}
        safetensors.numpy.save_file(part, path / f"model-0000{number}-of-00002.safetensors")
    return path


def _golden(name: str) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        source, path = GOLDEN / name, folder / Path(name).name
        if source.is_dir():
            shutil.copytree(source, path, ignore=shutil.ignore_patterns("expected.npz", "outputs.npz"))
        else:
            shutil.copy(source, path)
        return path

    return copy


def _foreign_checkpoint(folder: Path) -> Path:
    path = folder / "numbered_layers"
    path.mkdir()
    for file in (GOLDEN / "foreign").glob("bert_v1_ckpt.*"):
        shutil.copy(file, path)
    return path


def _tf_model(folder: Path) -> Path:
    return write_tf_model(folder / "tf_model", GOLDEN / "checkpoints" / "hf_bert")


FORMATS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _own,
    "packed": _packed,
    "packed_without_checksums": _packed_without_checksums,
    "foreign_safetensors": _foreign,
    "npz": _golden("checkpoints/weights.npz"),
    "deflated_npz": _deflated,
    "flax": _golden("jax/ckpt_bert_replicated_only"),
    "sharded_flax": _golden("jax/ckpt_linear_2_devices"),
    "tf_checkpoint": _golden("checkpoints/functional"),
    "saved_model": _golden("checkpoints/saved_model"),
    "hugging_face": _golden("checkpoints/hf_bert"),
    "hugging_face_shards": _shards,
    "weights_h5": _golden("checkpoints/encoder.weights.h5"),
    "h5": _golden("checkpoints/legacy.h5"),
    "keras": _keras,
    "numbered_layers": _foreign_checkpoint,
    "google_bert": _golden("foreign/tf1"),
    "tf_model": _tf_model,
    "keras_hub": _golden("foreign/keras_hub"),
    "bfloat16_h5": _golden("foreign/sm_bfloat16.weights.h5"),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with one kind of damage."""
    data = bytearray(content)
    # Structure is at both ends, numbers in between.
    reach = min(len(data), chance.choice([64, 1024, len(data)]))
    place = chance.randrange(reach) if chance.random() < 0.5 else len(data) - 1 - chance.randrange(reach)
    kind = chance.randrange(7)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 3:
        width = chance.choice([1, 2, 4, 8])
        number = chance.choice(HOSTILE) % 2 ** (8 * width)
        data[place : place + width] = number.to_bytes(width, chance.choice(["little", "big"]))
    elif kind == 4:
        data[place : place + chance.randint(0, 64)] = chance.randbytes(chance.randint(0, 64))
    elif kind == 5:
        numbers = [match.span() for match in re.finditer(rb"\d{1,19}", bytes(data))][:2000]
        if numbers:
            start, end = chance.choice(numbers)
            data[start:end] = str(chance.choice(HOSTILE)).encode()[: end - start].rjust(end - start, b"9")
    else:
        data[place:] = chance.randbytes(min(len(data) - place, 4096))
    return bytes(data)


def _memory(field: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is no such thing."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _fitting_encoder(path: Path) -> SparseMixer:
    """An encoder for the weights of an undamaged file."""
    if (path / "config.json").exists() or (path / "bert_config.json").exists():
        return SparseMixer.load(path)
    if path.name == "numbered_layers":
        return SparseMixer(**BERT)
    if path.name.startswith("sm_"):
        return SparseMixer(**json.loads((GOLDEN / "foreign" / "sm.json").read_text()))
    if (GOLDEN / "jax" / path.name).exists():
        with np.load(GOLDEN / "jax" / path.name / "expected.npz") as expected:
            return SparseMixer.from_flax(path, json.loads(str(expected["config"])))
    return _encoder()


def _read(path: Path, encoder: SparseMixer) -> Exception | None:
    """List, match and read everything; returns the first error."""
    first: Exception | None = None

    def attempt(action: Callable[[], object]) -> object:
        nonlocal first
        try:
            return action()
        except (CheckpointError, OSError) as error:
            # Text is listed, not read, in good files as well.
            if "are not read" not in str(error):
                first = first or error
            return None

    file = None
    try:
        file = open_weights(path)
    except (CheckpointError, OSError) as error:
        first = error
    if file is not None:
        for index in range(len(file.entries())):
            attempt(lambda index=index: file.read(index))
        file.close()
    # With the configuration that comes with the weights, and with a good one.
    own = ("own.safetensors", "packed.safetensors", "hf_bert", "hf_shards", "tf1", "tf_model", "keras_hub")
    has_config = path.name in own
    for config in ([None] if has_config else []) + [encoder.get_config()]:
        attempt(lambda config=config: SparseMixer.load(path, config=config))
    before = encoder.get_weights()
    if attempt(lambda: encoder.load_weights(path)) is None:
        for ours, theirs in zip(encoder.get_weights(), before, strict=True):
            assert ours.tobytes() == theirs.tobytes(), "a failed call has changed the weights"
    return first


def check(name: str, count: int, seed: int) -> list[str]:
    """Damage the files of format `name` `count` times; returns what went wrong."""
    chance = random.Random(f"{name} {seed}")
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        good = FORMATS[name](Path(folder))
        encoder = _fitting_encoder(good)
        # Reading once also loads what later calls need, h5py for one.
        if (error := _read(good, encoder)) is not None:
            return [f"undamaged: {error}"]
        files = sorted(path for path in ([good] if good.is_file() else good.rglob("*")) if path.is_file())
        contents = {path: path.read_bytes() for path in files}
        size = sum(map(len, contents.values()))
        outcomes = {"errors": 0, "loaded": 0}
        for number in range(count):
            victim = chance.choice([path for path in files if contents[path]])
            victim.write_bytes(damaged(contents[victim], chance))
            before, start = _memory("VmRSS"), time.perf_counter()
            _reset_peak()
            try:
                error = _read(good, encoder)
            except Exception as unexpected:
                problems.append(f"file {number}: {type(unexpected).__name__}: {unexpected}")
                error = None
            grown, seconds = _memory("VmHWM") - before, time.perf_counter() - start
            outcomes["loaded" if error is None else "errors"] += 1
            if error is not None and folder not in str(error):
                problems.append(f"file {number}: the message names no file: {error}")
            if grown > size + MOST_BEYOND_FILE:
                problems.append(f"file {number}: {grown >> 20} MiB for a file of {size} bytes")
            if seconds > MOST_SECONDS:
                problems.append(f"file {number}: {seconds:.1f} s")
            victim.write_bytes(contents[victim])
    print(f"{name}: {count} damaged files, {outcomes['errors']} errors, {outcomes['loaded']} loaded", flush=True)
    return problems


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="damaged files per format (default 500)")
    parser.add_argument("--format", choices=FORMATS, action="append", help="formats (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    for name in options.format or FORMATS:
        for problem in check(name, options.count, options.seed):
            print(f"{name}: {problem}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
