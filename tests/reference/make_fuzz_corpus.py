"""Write the seeds of the fuzzing corpus: one small valid file of each kind that a reader has to tell apart.

Run from the repository root, with TensorFlow and the package installed::

    python tests/reference/make_fuzz_corpus.py

Inputs that a fuzzer found are added to ``fuzz/corpus`` by hand, under a name that says what was wrong.
"""

import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import sparse_mixer
import tensorflow as tf

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
FOREIGN = Path(__file__).parents[1] / "golden" / "foreign"


def write(target: str, name: str, content: bytes) -> None:
    """Store one seed."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def join(*files: bytes) -> bytes:
    """Several files in one input, as ``fuzz/inputs.rs`` takes them apart."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def text(value: str) -> bytes:
    """A short msgpack text."""
    return bytes([0xA0 | len(value)]) + value.encode()


def leaf(array: np.ndarray, kind: int = 1) -> bytes:
    """A Flax leaf: extension value holding shape, type name and bytes."""
    shape = bytes([0x90 | array.ndim, *array.shape])
    payload = b"\x93" + shape + text(array.dtype.name) + bytes([0xC4, array.nbytes]) + array.tobytes()
    return bytes([0xC7, len(payload), kind]) + payload


def tree(**nodes: bytes) -> bytes:
    """A msgpack map."""
    return bytes([0x80 | len(nodes)]) + b"".join(text(key) + value for key, value in nodes.items())


def flax_seeds() -> None:
    """Whole, sharded and chunked trees."""
    floats = np.arange(4, dtype=np.float32)
    empty = leaf(np.zeros(0))
    router = tree(DenseGeneral_0=tree(kernel=leaf(floats.reshape(1, 4))))
    replicated = tree(step=leaf(np.array(3), 3), params=tree(expert_0=tree(kernel=empty), router_weights_0=router))
    shard = [tree(step=empty, params=tree(expert_0=tree(kernel=leaf(floats[:2].reshape(2, 1, 1) + p)))) for p in (0, 1)]
    write(
        "flax",
        "whole",
        join(tree(params=tree(a=leaf(floats), b=leaf(floats.astype(np.float16)), n=b"\xc0", i=b"\x05"))),
    )
    write("flax", "two_shards", join(replicated, *shard))
    chunks = tree(**{"0": leaf(floats), "1": leaf(floats)})
    chunked = b"\x83\xb9__msgpack_chunked_array__\xc3" + text("shape") + tree(**{"0": b"\x02", "1": b"\x04"})
    write("flax", "chunked", join(tree(a=chunked + text("chunks") + chunks)))


def main() -> None:
    """Write all seeds."""
    arrays = {"a/kernel": np.eye(2, dtype=np.float32), "scalar": np.array(1.0), "empty": np.zeros((0, 3), np.int8)}
    encoder = sparse_mixer.SparseMixer(
        2, 2, 1, (0,), (), num_experts=2, num_attention_heads=1, max_sequence_length=2, type_vocab_size=1, inner_dim=2
    )
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(f"{folder}/own")
        write("safetensors", "own_format", Path(folder, "own").read_bytes())
        module = tf.Module()
        module.a, module.b = tf.Variable([[1.0, 2.0]]), tf.Variable(tf.constant([3.0], tf.bfloat16))
        tf.train.Checkpoint(m=module).write(f"{folder}/ckpt")
        data = Path(folder, "ckpt.data-00000-of-00001").read_bytes()
        write("tensor_bundle", "two_variables", join(Path(folder, "ckpt.index").read_bytes(), data))
    for name, prefix in (("numbered_layers", "bert_v1_ckpt"), ("google_bert", "tf1/bert_model.ckpt")):
        files = [(FOREIGN / f"{prefix}.{ending}").read_bytes() for ending in ("index", "data-00000-of-00001")]
        write("tensor_bundle", name, join(*files))
    write("safetensors", "foreign", safetensors.numpy.save(arrays, {"format": "np"}))
    for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        file = io.BytesIO()
        save(file, **arrays, transposed=np.asfortranarray(np.ones((2, 3), np.float32)), text=np.array("x"))
        write("npz", name, file.getvalue())
    flax_seeds()
    write("config", "small", encoder.core.config.encode())


if __name__ == "__main__":
    main()
