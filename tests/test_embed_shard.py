"""`embed_shard`: a file of texts to a file of vectors, whole or not at all, each row once."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
from sparse_mixer import SparseMixer, TextEncoder, embeddings
from sparse_mixer.embeddings import embed_shard
from text_models import LETTERS, VOCABULARY, small_model

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

TEXTS = [" ".join(LETTERS[(i * k) % 8] for k in range(1, 2 + i % 9)) for i in range(70)]
TEXTS[3], TEXTS[4] = "", 'a, "b"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextEncoder:
    return small_model(folder)


@pytest.fixture(scope="module")
def vectors(model: TextEncoder) -> Any:
    return model.encode(TEXTS)


def written(path: Path, texts: list[str] = TEXTS) -> Path:
    """A source of the kind that the name says, with a number beside each text."""
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=30)
        return path
    with gzip.open(path, "wt") if path.name.endswith(".gz") else open(path, "w", newline="") as file:
        if ending == "jsonl":
            file.writelines(json.dumps(record) + "\n" for record in records)
        elif ending == "txt":
            file.writelines(text + "\n" for text in texts)
        else:
            table = csv.DictWriter(file, ["id", "text"], delimiter="\t" if ending == "tsv" else ",")
            table.writeheader()
            table.writerows(records)
    return path


def read(path: Path) -> tuple[Any, dict[str, list[Any]]]:
    """Vectors and the other columns of a target."""
    if path.suffix == ".npy":
        return np.load(path), {}
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found = np.array([record.pop("embedding") for record in records], np.float32)
        return found, {name: [record[name] for record in records] for name in records[0]}
    table = pq.read_table(path)
    column = table.column("embedding").combine_chunks()
    found = column.flatten().to_numpy().reshape(len(table), -1)
    return found, {name: table.column(name).to_pylist() for name in table.column_names if name != "embedding"}


@pytest.mark.parametrize("source", ["a.parquet", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("target", ["b.parquet", "b.npy", "b.jsonl"])
def test_every_source_to_every_target(
    source: str, target: str, model: TextEncoder, vectors: Any, tmp_path: Path
) -> None:
    shard = embed_shard(written(tmp_path / source), tmp_path / target, model, batch_size=7)
    assert (shard.rows, shard.encoded) == (70, 70)
    found, columns = read(tmp_path / target)
    np.testing.assert_array_equal(found, vectors)
    assert columns == ({} if target == "b.npy" else {"text": TEXTS})
    in_parts = tmp_path / f"parts-{target}"
    shard = embed_shard(tmp_path / source, in_parts, model, part_rows=16, keep=[] if source == "a.txt" else ["id"])
    assert (shard.rows, shard.encoded) == (70, 70)
    found, columns = read(in_parts)
    np.testing.assert_array_equal(found, vectors)
    if target != "b.npy" and source != "a.txt":
        kind = str if "csv" in source or "tsv" in source else int
        assert columns == {"id": [kind(i) for i in range(70)]}
    assert not list(tmp_path.glob("*.parts"))


def test_parquet_has_lists_of_a_fixed_size(model: TextEncoder, tmp_path: Path) -> None:
    embed_shard(written(tmp_path / "a.parquet"), tmp_path / "b.parquet", model, keep=["*"])
    schema = pq.read_schema(tmp_path / "b.parquet")
    assert schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert schema.names == ["id", "text", "embedding"]
    assert schema.field("id").type == pa.int64()
    about = json.loads(schema.metadata[b"sparse_mixer"])
    assert about["source"]["name"] == "a.parquet"
    assert about["settings"]["precision"] == "float32"


def version(path: Path) -> tuple[int, int, int, int]:
    """What a file has as long as nobody writes it: reading changes its time of access alone."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@pytest.mark.parametrize("target", ["b.parquet", "b.npy", "b.jsonl"])
def test_what_is_there_is_kept_or_refused(target: str, model: TextEncoder, folder: Path, tmp_path: Path) -> None:
    source, path = written(tmp_path / "a.jsonl"), tmp_path / target
    embed_shard(source, path, model)
    before = version(path)
    shard = embed_shard(source, path, small_model(folder), batch_size=3)
    assert (shard.rows, shard.encoded) == (70, 0)
    assert version(path) == before
    with pytest.raises(ValueError, match=r"normalize_embeddings: False there, True here"):
        embed_shard(source, path, model, normalize_embeddings=True)
    with pytest.raises(ValueError, match=r"pooling: \['mean'\] there, \['cls'\] here"):
        embed_shard(source, path, small_model(folder, pooling="cls"))
    other = small_model(folder)
    other.encoder.set_weights([weight + 1 for weight in other.encoder.get_weights()])
    with pytest.raises(ValueError, match="weights: "):
        embed_shard(source, path, other)
    written(source, [*TEXTS, "k"])
    with pytest.raises(ValueError, match="content: "):
        embed_shard(source, path, model)
    assert version(path) == before
    assert embed_shard(source, path, model, overwrite=True).encoded == 71
    np.testing.assert_array_equal(read(path)[0], model.encode([*TEXTS, "k"]))
    for beside in tmp_path.glob("*.json"):
        beside.unlink()
    if target != "b.parquet":
        with pytest.raises(ValueError, match="does not say what it was made of"):
            embed_shard(source, path, model)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_fewer_bits(precision: str, model: TextEncoder, vectors: Any, tmp_path: Path) -> None:
    source = written(tmp_path / "a.txt")
    expected = embeddings.quantize_embeddings(vectors, precision)
    for part_rows, name in ((None, "b.parquet"), (20, "c.npy"), (35, "d.jsonl")):
        embed_shard(source, tmp_path / name, model, precision=precision, part_rows=part_rows)
        found = read(tmp_path / name)[0]
        np.testing.assert_array_equal(found, expected)
    assert np.load(tmp_path / "c.npy").dtype == expected.dtype
    if precision == "int8":
        ranges = np.stack([np.full(16, -3), np.full(16, 3)])
        embed_shard(source, tmp_path / "e.npy", model, precision="int8", ranges=ranges)
        np.testing.assert_array_equal(
            np.load(tmp_path / "e.npy"), embeddings.quantize_embeddings(vectors, "int8", ranges)
        )
        with pytest.raises(ValueError, match="ranges: "):
            embed_shard(source, tmp_path / "e.npy", model, precision="int8")


def test_options_of_encode(folder: Path, tmp_path: Path) -> None:
    model = small_model(folder, prompts={"passage": "a b ", "query": "c "})
    source = written(tmp_path / "a.txt")
    embed_shard(source, tmp_path / "b.npy", model, truncate_dim=5, normalize_embeddings=True)
    expected = model.encode_document(TEXTS, truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), expected)
    embed_shard(source, tmp_path / "c.npy", model, prompt_name="query")
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), model.encode_query(TEXTS))
    long = written(tmp_path / "long.txt", ["a", "b " * 40])
    with pytest.raises(ValueError, match=r"inputs\[1\]: more than max_seq_length=16"):
        embed_shard(long, tmp_path / "d.npy", model, on_truncation="error")
    assert not (tmp_path / "d.npy").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed_shard(long, tmp_path / "d.npy", model).rows == 2


@pytest.mark.parametrize("target", ["b.parquet", "b.npy", "b.jsonl"])
@pytest.mark.parametrize("rows", [0, 1, 16, 32])
def test_few_rows(target: str, rows: int, model: TextEncoder, tmp_path: Path) -> None:
    source, path = written(tmp_path / "a.jsonl", TEXTS[:rows]), tmp_path / target
    for part_rows in (None, 16):
        shard = embed_shard(source, path, model, part_rows=part_rows, overwrite=True)
        assert (shard.rows, shard.encoded) == (rows, rows)
        assert embed_shard(source, path, model).encoded == 0
    if target == "b.npy":
        assert np.load(path).shape == (rows, 16)


SCRIPT = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from text_models import small_model
from sparse_mixer.embeddings import embed_shard
def progress(rows, fraction):
    if rows > {rows}: os.kill(os.getpid(), {signal})
embed_shard({source!r}, {target!r}, small_model(Path({folder!r})), part_rows=16, progress=progress)
"""


def killed(source: Path, target: Path, rows: int, number: int = signal.SIGKILL) -> subprocess.CompletedProcess[str]:
    """Embeds in another process, which gets a signal after more than so many rows."""
    tests, folder = str(Path(__file__).parent), str(source.parent / "model")
    script = SCRIPT.format(
        tests=tests, rows=rows, signal=int(number), source=str(source), target=str(target), folder=folder
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("name", "target"), [("a.csv", "b.parquet"), ("a.parquet", "b.npy")])
def test_goes_on_after_a_kill(name: str, target: str, model: TextEncoder, vectors: Any, tmp_path: Path) -> None:
    source, path = written(tmp_path / name), tmp_path / target
    assert killed(source, path, 40).returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(Path(f"{path}.parts").glob(f"0*{path.suffix}"))) == 2
    with pytest.raises(ValueError, match=r"truncate_dim: 16 there, 3 here"):
        embed_shard(source, path, model, part_rows=16, truncate_dim=3)
    with pytest.raises(ValueError, match=r"part_rows: .*16 there, 20 here"):
        embed_shard(source, path, model, part_rows=20)
    seen: list[tuple[int, float]] = []
    shard = embed_shard(source, path, model, part_rows=16, progress=lambda *now: seen.append(now))
    assert (shard.rows, shard.encoded) == (70, 38)
    assert seen[0][0] == 48
    assert seen[-1] == (70, 1.0)
    np.testing.assert_array_equal(read(path)[0], vectors)
    assert {name.name for name in tmp_path.iterdir()} <= {name, "model", target, "b.npy.json"}


def test_ctrl_c_keeps_parts(model: TextEncoder, vectors: Any, tmp_path: Path) -> None:
    source, path = written(tmp_path / "a.jsonl"), tmp_path / "b.jsonl"
    assert "KeyboardInterrupt" in killed(source, path, 20, signal.SIGINT).stderr
    assert embed_shard(source, path, model, part_rows=16).encoded == 54
    np.testing.assert_array_equal(read(path)[0], vectors)


def test_experts_that_look_at_batches(folder: Path, tmp_path: Path) -> None:
    """With the paper's semantics texts compete for experts: the same batches, cut or not, so the same bits."""
    small_model(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "inner_dim": 32, "num_experts": 4}
    paper: dict[str, Any] = {"semantics": "paper", "moe_layers": (0,), "attention_layers": (), "max_group_size": 64}
    encoder = SparseMixer(len(VOCABULARY), **sizes, **paper, max_sequence_length=16, eval_capacity_factor=0.5, seed=3)
    model = TextEncoder(encoder, folder / "vocab.txt")
    source = written(tmp_path / "a.jsonl")
    whole = tmp_path / "whole.npy"
    embed_shard(source, whole, model, batch_size=8, part_rows=24)
    alone = np.stack([model.encode(text) for text in TEXTS])
    assert not np.array_equal(np.load(whole), alone), "or this test shows nothing"

    def stop(rows: int, share: float) -> None:
        if rows > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_shard(source, tmp_path / "cut.npy", model, batch_size=8, part_rows=24, progress=stop)
    assert embed_shard(source, tmp_path / "cut.npy", model, batch_size=8, part_rows=24).encoded == 46
    np.testing.assert_array_equal(np.load(tmp_path / "cut.npy"), np.load(whole))
    with pytest.raises(ValueError, match="batch_size: 8 there, 9 here"):
        embed_shard(source, whole, model, batch_size=9, part_rows=24)
    with pytest.raises(ValueError, match="part_rows: 24 there, None here"):
        embed_shard(source, whole, model, batch_size=8)


def test_two_processes_at_one_target(model: TextEncoder, tmp_path: Path) -> None:
    source, path = written(tmp_path / "a.txt"), tmp_path / "b.npy"

    def other(rows: int, fraction: float) -> None:
        with pytest.raises(BlockingIOError, match="another process"):
            embed_shard(source, path, model, part_rows=16)

    assert embed_shard(source, path, model, part_rows=16, progress=other).rows == 70


WRONG: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no such ending": (lambda path: (path / "a.doc").touch() or path / "a.doc", {}, r"source: got .*a\.doc"),
    "no such target": (lambda path: written(path / "a.txt"), {"target": "b.h5"}, "target: got 'b.h5'"),
    "no such column": (lambda path: written(path / "a.csv"), {"column": "body"}, "no column 'body', but 'id', 'text'"),
    "nothing to keep": (lambda path: written(path / "a.csv"), {"keep": ["body"]}, "keep: .* no column 'body'"),
    "numbers": (lambda path: written(path / "a.parquet"), {"column": "id"}, r"row 0: id: got 0 \(int\)"),
    "precision": (lambda path: written(path / "a.txt"), {"precision": "int4"}, "precision: got 'int4'"),
    "ranges": (lambda path: written(path / "a.txt"), {"ranges": [[0], [1]]}, "ranges: given, but precision"),
    "batch size": (lambda path: written(path / "a.txt"), {"batch_size": 0}, "batch_size: expected at least 1"),
    "a prompt": (lambda path: written(path / "a.txt"), {"prompt_name": "x"}, "prompt_name: got 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name: str, model: TextEncoder, tmp_path: Path) -> None:
    make, options, message = WRONG[name]
    source = make(tmp_path)
    options = {"target": tmp_path / "b.parquet", **options}
    with pytest.raises(ValueError, match=message):
        embed_shard(source, options.pop("target"), model, **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "red"}\n{"text": null}\n', "row 1: text: got no value"),
        ("a.jsonl", b'{"text": "red"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "red"}\n[1]\n', "line 2: expected a JSON object"),
        ("a.csv", b"text,id\nred,1\ngreen\n", "line 3: got 1 values, expected 2"),
        ("a.csv", b'text\n"red\n', "line 2: unexpected end of data"),
        ("a.txt", b"red\n\xff\n", "line 2: not UTF-8"),
        ("a.txt.gz", b"red", "damaged"),
    ],
)
def test_damaged_sources(name: str, content: bytes, message: str, model: TextEncoder, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        embed_shard(tmp_path / name, tmp_path / "b.npy", model)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"about": 1, "part_rows": 2}'])
def test_a_damaged_note_of_an_interrupted_run(content: bytes, model: TextEncoder, tmp_path: Path) -> None:
    source, folder = written(tmp_path / "a.txt", TEXTS), tmp_path / "b.npy.parts"
    folder.mkdir()
    (folder / "job.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"job\.json: (not JSON|expected a JSON object|damaged)"):
        embed_shard(source, tmp_path / "b.npy", model, part_rows=2)
    assert (folder / "job.json").read_bytes() == content


def test_json_values_of_several_types(model: TextEncoder, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    records = [{"text": "red", "about": {"n": 1}, "x": 1}, {"text": "green", "about": None, "x": "late"}]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    embed_shard(source, tmp_path / "b.jsonl", model, keep=["*"])
    assert read(tmp_path / "b.jsonl")[1] == {name: [record[name] for record in records] for name in records[0]}
    embed_shard(source, tmp_path / "b.parquet", model, keep=["about"])
    assert read(tmp_path / "b.parquet")[1] == {"about": [{"n": 1}, None]}
    with pytest.raises(ValueError, match="keep: column 'x': expected values of one type"):
        embed_shard(source, tmp_path / "c.parquet", model, keep=["x"])


def test_without_pyarrow(model: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "a.txt")
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "sparse_mixer\[parquet\]"'):
        embed_shard(source, tmp_path / "b.parquet", model)
    assert embed_shard(source, tmp_path / "b.npy", model).rows == 70


@pytest.mark.parametrize("part_rows", [None, 30])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt.gz"])
def test_progress_tells_of_each_pass(name: str, part_rows: int | None, model: TextEncoder, tmp_path: Path) -> None:
    source = written(tmp_path / name)
    seen: list[tuple[int, float]] = []
    options: dict[str, Any] = {"batch_size": 10, "part_rows": part_rows}
    embed_shard(source, tmp_path / "b.npy", model, progress=lambda *now: seen.append(now), **options)
    assert [rows for rows, _ in seen] == [10, 20, 30, 40, 50, 60, 70]
    np.testing.assert_allclose([share for _, share in seen], np.arange(1, 8) / 7)


def test_columns_are_kept_once(model: TextEncoder, tmp_path: Path) -> None:
    source = written(tmp_path / "a.parquet")
    embed_shard(source, tmp_path / "b.parquet", model, keep=["id", "id"])
    assert pq.read_schema(tmp_path / "b.parquet").names == ["id", "embedding"]
