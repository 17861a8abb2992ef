"""Files made to exhaust memory or time: refused quickly, with at most 64 MB more memory than the file is long."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from encoders import small_encoder

MOST_BEYOND_FILE = 64 << 20
# Opens, lists, reads and loads everything; prints the growth of the peak memory in bytes, and the first error.
_EXERCISE = """
import resource, sys, time
from sparse_mixer import SparseMixer
from sparse_mixer.checkpoints.opening import open_weights
def peak():
    # Unlike getrusage, this counts this program alone and not what it was forked from.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
open_weights({})
before, start, error = peak(), time.perf_counter(), None
try:
    file = open_weights(sys.argv[1])
    for index in range(len(file.entries())):
        try:
            file.read(index)
        except ValueError as caught:
            error = error or caught
    file.plan([("pooler_transform/kernel", [2, 2])], None)
except ValueError as caught:
    error = caught
try:
    SparseMixer.load(sys.argv[1])
except ValueError as caught:
    error = error or caught
print(peak() - before, time.perf_counter() - start, repr(error)[:500], sep="\\n")
"""


def safetensors_file(header: bytes, claimed: int | None = None) -> bytes:
    """A file with this header and no data."""
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header


def npz(name: str, header: str, content: bytes) -> bytes:
    """An archive with one deflated array."""
    text = header.encode().ljust(118) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)
    return file.getvalue()


def array_header(count: int) -> str:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}"


def lying_bomb() -> bytes:
    """The directory promises 4 kB; 400 MB come out."""
    content = npz("a", array_header(100_000_000), bytes(400_000_000))
    honest, size = struct.pack("<I", 400_000_000 + 129), struct.pack("<I", 4096)
    return content.replace(honest, size)


def table_of_long_names(count: int) -> bytes:
    """A tensor bundle index whose names share almost all of their thousand bytes."""
    entry = b"\x08\x01\x12\x00"
    block, previous = bytearray(b"\x00\x00\x02\x08\x01"), b""
    for number in range(count):
        key = b"n" * 990 + b"%08d" % number
        shared = len(key) - 8 if previous else 0
        block += varint(shared) + varint(len(key) - shared) + varint(len(entry)) + key[shared:] + entry
        previous = key
    block += struct.pack("<II", 0, 1)
    file = bytearray(block) + trailer(block)
    handle = varint(0) + varint(len(block))
    index = b"\x00\x01" + varint(len(handle)) + b"z" + handle + struct.pack("<II", 0, 1)
    footer = varint(0) + varint(0) + varint(len(file)) + varint(len(index))
    file += index + trailer(index)
    return bytes(file) + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def trailer(block: bytes) -> bytes:
    crc = crc32c(bytes(block) + b"\0")
    return b"\0" + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def flax_of_many_leaves(count: int) -> bytes:
    """Leaves below a path of nine hundred bytes."""
    scalar = b"\xc7\x0b\x03\x93\x90\xa5uint8\xc4\x01\0"
    leaves = b"".join(b"\xa6%06d" % number + scalar for number in range(count))
    return b"\x81\xda" + struct.pack(">H", 900) + b"p" * 900 + b"\xdf" + struct.pack(">I", count) + leaves


def configured(more_tensors: int = 0, **changes: Any) -> bytes:
    """A small encoder's file, with `changes` of its configuration and further tensors of no size."""
    encoder = small_encoder()
    tensors = {weight.key: weight.numpy() for weight in encoder.weights}
    tensors |= {f"x/{number}": np.zeros(0, np.uint8) for number in range(more_tensors)}
    return safetensors.numpy.save(tensors, metadata={"config": json.dumps({**encoder.get_config(), **changes})})


def hugging_face(**changes: Any) -> dict[str, bytes]:
    """The files of a small BERT, with `changes` of its configuration."""
    folder = Path(__file__).parent / "golden" / "checkpoints" / "hf_bert"
    config = json.loads((folder / "config.json").read_text())
    return {
        "config.json": json.dumps({**config, **changes}).encode(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
    }


def keras_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(300_000_000))
    return file.getvalue()


LARGE = 1_000_000
# Made when their tests run: some are large.
HOSTILE: dict[str, tuple[str, Callable[[], bytes | dict[str, bytes]]]] = {
    "header that claims 2^60 bytes": ("a.safetensors", lambda: safetensors_file(b"{}", 1 << 60)),
    "header of 90 MB": ("a.safetensors", lambda: safetensors_file(b'{"a":"' + b"x" * 90 * LARGE + b'"}')),
    "shape of very many ones": (
        "a.safetensors",
        lambda: safetensors_file(b'{"a":{"dtype":"F32","shape":[' + b"1," * 500_000 + b'1],"data_offsets":[0,4]}}'),
    ),
    "tensors of no size": (
        "a.safetensors",
        lambda: safetensors_file(
            json.dumps(
                {str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(16_000)},
                separators=(",", ":"),
            ).encode()
        ),
    ),
    "header of 90 MB of tensors of no size": (
        "a.safetensors",
        lambda: safetensors_file(
            b"{"
            + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(1_600_000))
            + b"}"
        ),
    ),
    "header of 90 MB of metadata": (
        "a.safetensors",
        lambda: safetensors_file(b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(8 * LARGE)) + b"}}"),
    ),
    "header of 90 MB of checksums": (
        "a.safetensors",
        lambda: safetensors_file(
            b'{"__metadata__":{' + b",".join(b'"crc32c:%d":"0"' % n for n in range(4 * LARGE)) + b"}}"
        ),
    ),
    "shape of 45 million ones": (
        "a.safetensors",
        lambda: safetensors_file(b'{"a":{"dtype":"F32","shape":[' + b"1," * 45 * LARGE + b'1],"data_offsets":[0,4]}}'),
    ),
    "name of 90 MB in escapes": (
        "a.safetensors",
        lambda: safetensors_file(
            b'{"' + b"\\u0041" * 15 * LARGE + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
    ),
    "90 MB of text in the place of a shape": (
        "a.safetensors",
        lambda: safetensors_file(b'{"a":{"dtype":"F32","shape":"' + b"x" * 90 * LARGE + b'","data_offsets":[0,4]}}'),
    ),
    "deeply nested header": ("a.safetensors", lambda: safetensors_file(b'{"a":' + b"[" * 500_000)),
    "sizes whose product overflows": (
        "a.safetensors",
        lambda: safetensors_file(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    ),
    "bomb of 400 MB": ("a.npz", lambda: npz("a", array_header(100_000_000), bytes(400_000_000))),
    "bomb that hides its size": ("a.npz", lying_bomb),
    "archive of very many members": (
        "a.npz",
        lambda: (
            b"PK\x03\x04"
            + (b"PK\x01\x02" + bytes(24) + b"\x01" + bytes(17) + b"x") * 300_000
            + b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff"
            + struct.pack("<IIH", 47 * 300_000, 4, 0)
        ),
    ),
    "very many leaves under a long name": ("a.msgpack", lambda: flax_of_many_leaves(90_000)),
    "map that claims 2^32 entries": ("a.msgpack", lambda: b"\xdf\xff\xff\xff\xff\xa1a\xc0"),
    "maps a million deep": ("a.msgpack", lambda: b"\x81\xa1a" * LARGE),
    "lists a million deep": ("a.msgpack", lambda: b"\x81\xa1a" + b"\x91" * LARGE),
    "long names that share their beginning": ("a.index", lambda: table_of_long_names(90_000)),
    ".keras bomb": ("a.keras", keras_bomb),
    "configuration of 20,000 layers": ("a.safetensors", lambda: configured(num_layers=20_000)),
    "configuration of 5,000,000 layers": ("a.safetensors", lambda: configured(num_layers=5_000_000)),
    "as many layers as there can be for very many tensors": (
        "a.safetensors",
        lambda: configured(15_000, num_layers=15_000 // 8),
    ),
    "configuration of a wide model": ("a.safetensors", lambda: configured(hidden_size=2**40)),
    "configuration of very many experts": ("a.safetensors", lambda: configured(num_experts=10**9)),
    "configuration of a large vocabulary": ("a.safetensors", lambda: configured(vocab_size=10**9)),
    "configuration of long sequences": ("a.safetensors", lambda: configured(max_sequence_length=10**6)),
    "configuration of very many layers with experts": (
        "a.safetensors",
        lambda: configured(moe_layers=list(range(10**6)), attention_layers=list(range(10**6))),
    ),
    "Hugging Face's configuration of very many layers": (
        "model.safetensors",
        lambda: hugging_face(num_hidden_layers=10**12),
    ),
    "Hugging Face's configuration of a wide model": (
        "model.safetensors",
        lambda: hugging_face(hidden_size=2**40, intermediate_size=2**40),
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", HOSTILE)
def test_memory_and_time_are_bounded(tmp_path: Path, kind: str) -> None:
    name, make = HOSTILE[kind]
    path = tmp_path / name
    content = make()
    files = content if isinstance(content, dict) else {name: content}
    for file, file_content in files.items():
        (tmp_path / file).write_bytes(file_content)
    if name.endswith(".index"):
        path.with_suffix(".data-00000-of-00001").write_bytes(b"")
    result = subprocess.run(
        [sys.executable, "-c", _EXERCISE, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    growth, seconds, error = result.stdout.splitlines()
    assert "CheckpointError" in error or kind == "tensors of no size", error
    assert int(growth) <= sum(map(len, files.values())) + MOST_BEYOND_FILE
    assert float(seconds) < 20


def test_a_compressed_table_of_zeros_is_no_bomb(tmp_path: Path) -> None:
    """The largest table of the Base model compresses to nothing when it is constant; it must be readable."""
    from sparse_mixer.checkpoints.opening import open_weights

    np.savez_compressed(tmp_path / "zeros.npz", table=np.zeros((30522, 512), np.float32))
    assert (tmp_path / "zeros.npz").stat().st_size < 100_000
    table = open_weights(tmp_path / "zeros.npz").read(0)
    assert table.shape == (30522, 512)
    assert zlib.crc32(table.tobytes()) == zlib.crc32(bytes(table.nbytes))
