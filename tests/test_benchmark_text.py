"""`python -m benchmarks text`: what it calls engines with, and what it makes of their times and vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("tqdm")
from sparse_mixer.text import load_tokenizer
from text_models import folder_of

from benchmarks import rivals, sentence_quality, text
from benchmarks.sentence_tasks import PASSAGE_TOKENS, SHAPES, SentenceLoad, make_load, read_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = folder_of(tmp_path_factory.mktemp("model") / "mini", sentence_bert_config={"max_seq_length": 8})
    load_tokenizer(path / "vocab.txt").save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def load(folder: Path) -> SentenceLoad:
    return make_load(folder, 200)


def test_texts_are_of_the_lengths_that_are_said_and_not_calibrated_on(load: SentenceLoad) -> None:
    tokenizer = read_tokenizer(load.model, None)
    passages, calibration, queries = (load.texts[name] for name in ("W4", "calibration", "queries"))
    assert (len(passages), len(calibration), len(queries)) == (200, 128, 600)
    assert len({*passages, *calibration}) == 328
    counts = [len(tokenizer.encode(passage).ids) for passage in passages]
    assert min(counts) >= PASSAGE_TOKENS[0]
    assert max(counts) <= PASSAGE_TOKENS[1]
    assert min(counts) < 20 < 100 < max(counts)
    (query,) = load.inputs("W3 text").texts
    assert len(tokenizer.encode(query).ids) == SHAPES["W3"][1]
    pieces = [len(tokenizer.encode(piece, add_special_tokens=False).ids) for piece in load.inputs("lengths").texts]
    assert len(pieces) == 1000
    assert min(pieces) <= 2
    assert max(pieces) >= 599


def test_given_tokens_are_whole_texts(load: SentenceLoad) -> None:
    for name, shape in SHAPES.items():
        ids = load.inputs(name).ids
        assert ids is not None
        assert ids.shape == shape
        assert (ids[:, 0] == 2).all()
        assert (ids[:, -1] == 3).all()
        assert not np.isin(ids[:, 1:-1], (0, 2, 3)).any()


def test_the_ratio_is_that_to_the_closest_engine_of_the_same_precision() -> None:
    times = {"text-f32": [1.0, 2.0, 1.0], "text-torch-f32": [1.5, 3.0, 4.0], "text-onnx-f32": [1.2, 2.4, 1.2]}
    narrow = {"text-int8": [1.0, 1.0, 1.0], "text-openvino-int8": [0.5, 0.5, 0.5]}
    found = rivals.closest_rivals({"W1": {**times, **narrow, "text-bf16": [1.0, 1.0, 1.0]}})
    assert found == {
        ("float32", "W1"): rivals.Rival("text-onnx-f32", pytest.approx(1.2)),
        ("int8", "W1"): rivals.Rival("text-openvino-int8", pytest.approx(0.5)),
    }


def test_the_overlap_counts_passages_that_stay_among_the_nearest() -> None:
    passages = np.eye(30, dtype=np.float32)
    # The nearest of both queries are passages 0 to 9; by the other vectors of the first query 5 to 14.
    queries = np.tile(np.arange(30, 0, -1, dtype=np.float32), (2, 1))
    others = queries.copy()
    others[0, :5], others[0, 10:15] = queries[0, 10:15], queries[0, :5]
    assert sentence_quality.top_overlap(queries, passages, queries, passages) == 1
    assert sentence_quality.top_overlap(others, passages, queries, passages) == 0.75


def test_a_run_of_our_engines(folder: Path, tmp_path: Path) -> None:
    tables = text.run(
        folder,
        ["text-f32", "text-int8"],
        ["W4", "W3 text"],
        threads=1,
        rounds=1,
        passages=40,
        passage_rounds=1,
        folder=tmp_path,
    )
    assert (tmp_path / "text.md").read_text().strip() in tables
    saved = json.loads((tmp_path / "text.json").read_text())
    assert saved["sequences_per_call"] == {"W4": 40, "W3 text": 1}
    measured = [(task, engine) for task, of in saved["seconds_per_call"].items() for engine in of]
    assert measured == [(task, engine) for task in ("W4", "W3 text") for engine in ("text-f32", "text-int8")]
    cosines = saved["least_cosine_to_text-f32"]
    assert cosines["text-f32"] == pytest.approx(1, abs=1e-12)
    assert 0.9 < cosines["text-int8"] < 1 - 1e-7
    rate = 40 / saved["seconds_per_call"]["W4"]["text-int8"][0]
    assert f"{rate:.1f}" in tables
