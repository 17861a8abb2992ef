"""``sparse-mixer embed`` and ``sparse-mixer search``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("pyarrow")
from sparse_mixer import TextEncoder, cli, embeddings
from sparse_mixer.cli.progress_line import ProgressLine, duration
from text_models import LETTERS, folder_of, small_model

TEXTS = [" ".join(LETTERS[(i * k) % 11] for k in range(1, 2 + i % 7)) for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    about = {"prompts": {"query": "a ", "document": "b "}, "similarity_fn_name": "cosine"}
    return folder_of(tmp_path_factory.mktemp("model") / "mini", config_sentence_transformers=about)


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts)))
    return path


def test_embed_passes_its_options_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = lines(tmp_path / "a.jsonl", TEXTS), tmp_path / "b.npy"
    options = ["--column=body", "--batch-size=5", "--pooling=cls", "--pooling=max", "--dtype=bfloat16", "--normalize"]
    more = ["--num-threads=1", "--max-seq-length=6", "--truncate-dim=20", "--prompt=c ", "--precision=ubinary"]
    assert run("embed", folder, source, target, *options, *more) == cli.EXIT_OK
    assert "b.npy: 60 vectors, 60 new" in capsys.readouterr().out
    model = TextEncoder(folder, pooling=("cls", "max"), dtype="bfloat16", max_seq_length=6)
    expected = model.encode(
        TEXTS, prompt="c ", normalize_embeddings=True, truncate_dim=20, precision="ubinary", on_truncation="ignore"
    )
    np.testing.assert_array_equal(np.load(target), expected)
    assert run("embed", folder, source, target, *options, *more) == cli.EXIT_OK
    assert "b.npy: 60 vectors, was there" in capsys.readouterr().out
    assert run("embed", folder, source, target, *options) == cli.EXIT_USAGE
    assert "precision: 'ubinary' there, 'float32' here" in capsys.readouterr().err
    assert run("embed", folder, source, target, "--column=body", "--overwrite") == cli.EXIT_OK
    plain = TextEncoder(folder).encode_document(TEXTS, on_truncation="ignore")
    np.testing.assert_array_equal(np.load(target), plain)


def test_several_files_go_to_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        lines(tmp_path / "in" / f"{number}.jsonl", TEXTS[20 * number :][:20])
    pattern, out = tmp_path / "in" / "*.jsonl", tmp_path / "out"
    assert run("embed", folder, pattern, out, "--column=body", "--keep=id", "--format=jsonl") == cli.EXIT_OK
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    records = [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert [record["id"] for record in records] == [*range(20)] * 3
    expected = TextEncoder(folder).encode_document(TEXTS, on_truncation="ignore")
    np.testing.assert_array_equal(np.array([record["embedding"] for record in records], np.float32), expected)
    capsys.readouterr()
    assert run("embed", folder, pattern, out, "--column=body", "--precision=int8") == cli.EXIT_USAGE
    assert "--ranges: missing" in capsys.readouterr().err
    np.save(tmp_path / "ranges.npy", np.stack([np.full(16, -1), np.full(16, 1)]))
    more = ["--precision=int8", f"--ranges={tmp_path / 'ranges.npy'}"]
    assert run("embed", folder, pattern, tmp_path / "int8", "--column=body", *more) == cli.EXIT_OK
    assert len(list((tmp_path / "int8").glob("*.parquet"))) == 3


@pytest.mark.parametrize("name", ["b.parquet", "b.jsonl"])
@pytest.mark.parametrize("precision", ["float32", "int8", "ubinary"])
def test_search(name: str, precision: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, corpus = lines(tmp_path / "a.jsonl", TEXTS), tmp_path / name
    assert run("embed", folder, source, corpus, "--column=body", "--precision", precision) == cli.EXIT_OK
    capsys.readouterr()
    queries = ["c d", "k"]
    assert run("search", folder, corpus, *queries, "--top-k=4", "--json") == cli.EXIT_OK
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["query"] for result in found] == queries
    model = TextEncoder(folder)
    vectors = model.encode_document(TEXTS, on_truncation="ignore")
    stored = vectors
    if precision == "ubinary":
        stored = np.where(vectors > 0, 1, -1)
    if precision == "int8":
        least, step = vectors.min(axis=0), np.ptp(vectors, axis=0) / 255
        stored = (embeddings.quantize_embeddings(vectors, "int8").astype(float) + 128) * step + least
        np.testing.assert_allclose(stored, vectors, atol=step.max() * 1.01)
    expected = embeddings.semantic_search(model.encode_query(queries), stored, top_k=4)
    for result, hits in zip(found, expected, strict=True):
        np.testing.assert_allclose([hit["score"] for hit in result["hits"]], [hit["score"] for hit in hits], atol=1e-6)
        assert all(hit["body"] == TEXTS[hit["row"]] for hit in result["hits"])
        if precision == "float32":
            assert [hit["row"] for hit in result["hits"]] == [hit["corpus_id"] for hit in hits]


def test_search_over_several_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [lines(tmp_path / f"{number}.jsonl", TEXTS[30 * number :][:30]) for number in range(2)]
    assert run("embed", folder, *sources, tmp_path / "out", "--column=body") == cli.EXIT_OK
    (tmp_path / "queries.txt").write_text("c d\nk\n")
    capsys.readouterr()
    assert run("search", folder, tmp_path / "out", "--queries", tmp_path / "queries.txt", "--top-k=3") == cli.EXIT_OK
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if not line.startswith(" ")] == ["c d", "k"]
    model = TextEncoder(folder)
    vectors = model.encode_document(TEXTS, on_truncation="ignore")
    (best, *_), _ = embeddings.semantic_search(model.encode_query(["c d", "k"]), vectors)
    file, row = divmod(best["corpus_id"], 30)
    assert printed[1].split()[:2] == [f"{best['score']:.4f}", f"{file}.parquet:{row}"]


def test_wrong_calls(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lines(tmp_path / "a.jsonl", TEXTS)
    small_model(tmp_path / "other")
    assert run("embed", folder, source, tmp_path / "b.parquet", "--column=body") == cli.EXIT_OK
    (tmp_path / "sub").mkdir()
    double = lines(tmp_path / "sub" / "a.jsonl", TEXTS)
    for arguments, message in [
        (["embed", folder, tmp_path / "x*.txt", tmp_path / "out"], "no such files"),
        (["embed", folder, tmp_path / "x.txt", tmp_path / "out"], "x.txt: no such file"),
        (["embed", folder, source, source, tmp_path / "b.parquet"], "is a file; several inputs need a folder"),
        (["embed", folder, source, double, tmp_path / "out"], "two files would be written"),
        (["embed", folder, source, tmp_path / "c.parquet"], "no column 'text', but 'id', 'body'"),
        (["embed", folder, source, tmp_path / "c.npy", "--format=npy"], "--format: the name of the output says it"),
        (["embed", tmp_path / "none", source, tmp_path / "c.npy"], "none"),
        (["search", folder, tmp_path / "b.parquet"], "query: missing"),
        (["search", folder, source, "k"], "not a whole file of vectors"),
        (["search", folder, tmp_path / "sub" / "no.npy", "k"], "no such file"),
        (["search", tmp_path / "other" / "model.safetensors", tmp_path / "b.parquet", "k"], "another model"),
    ]:
        capsys.readouterr()
        assert run(*arguments) == cli.EXIT_USAGE
        assert message in capsys.readouterr().err


def test_ctrl_c_and_progress(tmp_path: Path) -> None:
    """A real process, whose error output is no terminal; it goes on where it was."""
    small_model(tmp_path / "model")
    source, target = lines(tmp_path / "a.jsonl", TEXTS * 500), tmp_path / "b.parquet"
    model = str(tmp_path / "model" / "model.safetensors")
    command = [sys.executable, "-m", "sparse_mixer.cli", "embed", model, str(source), str(target), "--column=body"]
    command += ["--part-rows=1024", "--batch-size=4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list(Path(f"{target}.parts").glob("0*"))) < 3:
        assert process.poll() is None, "too fast to be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("interrupted; the same command goes on from here\n")
    assert not target.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows, new = (int(part.split()[0].replace(",", "")) for part in done.stdout.split(": ")[1].split(", ")[:2])
    assert rows == 30_000
    assert 1024 <= rows - new < 30_000
    assert not os.path.exists(f"{target}.parts")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 36_000)] == ["0:00:00", "0:01:01", "10:00:00"]


def test_progress_says_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line, silent = ProgressLine("a.txt", True), ProgressLine("b.txt", False)
    # A thousand rows were there before; they say nothing of the rate.
    for seconds, rows in ((0, 1000), (4, 1100), (20, 1500), (25, 1700), (40, 2000)):
        now = 100.0 + seconds
        for one in (line, silent):
            one(rows, rows / 5000)
    line.end()
    assert capsys.readouterr().err == (
        "a.txt: 1,500 rows, 30%, 25 rows/s, about 0:02:20 left\na.txt: 2,000 rows, 40%, 25 rows/s, about 0:02:00 left\n"
    )
