"""`sparse_mixer.embeddings` against plain formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sparse_mixer import embeddings

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(7, 12)).astype(np.float32)
B = RANDOM.normal(size=(5, 12)).astype(np.float32)


def test_similarities() -> None:
    x, y = A.astype(float), B.astype(float)
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    expected = {
        "cosine": x @ y.T / lengths,
        "dot": x @ y.T,
        "euclidean": -np.linalg.norm(x[:, None] - y, axis=2),
        "manhattan": -np.abs(x[:, None] - y).sum(axis=2),
    }
    assert set(expected) == set(embeddings.SIMILARITIES)
    for name, (all_pairs, same_places) in embeddings.SIMILARITIES.items():
        np.testing.assert_allclose(all_pairs(A, B), expected[name], atol=1e-5)
        np.testing.assert_allclose(same_places(A[:5], B), np.diagonal(expected[name]), atol=1e-5)
        with pytest.raises(ValueError, match="b: got vectors of 3 numbers, expected 12"):
            all_pairs(A, B[:, :3])
        with pytest.raises(ValueError, match="b: got 5 vectors, expected 7"):
            same_places(A, B)
    assert embeddings.cos_sim(A[0], B).shape == (1, 5)
    np.testing.assert_array_equal(embeddings.normalize_embeddings(np.zeros((1, 3))), np.zeros((1, 3)))
    with pytest.raises(TypeError, match="a: expected numbers"):
        embeddings.cos_sim(["x"], B)  # type: ignore[arg-type]


@pytest.mark.parametrize(("queries", "corpus"), [(100, 1000), (2, 3), (1, 1)])
def test_semantic_search_in_blocks(queries: int, corpus: int) -> None:
    library = RANDOM.normal(size=(40, 12)).astype(np.float32)
    library[17] = library[3]
    scores = embeddings.cos_sim(A, library)
    found = embeddings.semantic_search(A, library, queries, corpus, top_k=6)
    for row, hits in zip(scores, found, strict=True):
        order = sorted(range(40), key=lambda i: (-row[i], i))[:6]
        assert [hit["corpus_id"] for hit in hits] == order
        np.testing.assert_allclose([hit["score"] for hit in hits], row[order], atol=1e-6)
    assert len(embeddings.semantic_search(A[0], library, top_k=100)[0]) == 40
    closest = embeddings.semantic_search(A, A, score_function=embeddings.dot_score, top_k=1)
    assert [hits[0]["corpus_id"] for hits in closest] == (A @ A.T).argmax(axis=1).tolist()
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        embeddings.semantic_search(A, library, top_k=0)


def test_paraphrase_mining() -> None:
    class Model:
        def encode(self, texts: list[str], **_: Any) -> Any:
            return A[: len(texts)]

    cosines = embeddings.cos_sim(A, A)
    expected = sorted(((cosines[i, j], i, j) for i in range(7) for j in range(i + 1, 7)), reverse=True)
    for block in (2, 5000):
        found = embeddings.paraphrase_mining(Model(), ["x"] * 7, query_chunk_size=block)
        assert [(i, j) for _, i, j in found] == [(i, j) for _, i, j in expected]
        np.testing.assert_allclose([score for score, _, _ in found], [score for score, _, _ in expected], atol=1e-6)
    assert len(embeddings.paraphrase_mining_embeddings(A, max_pairs=3)) == 3


def test_quantize_embeddings() -> None:
    ranges = np.stack([A.min(axis=0), A.max(axis=0)])
    levels = (A - ranges[0]) / ((ranges[1] - ranges[0]) / 255)
    np.testing.assert_array_equal(embeddings.quantize_embeddings(A, "uint8"), levels.astype(np.uint8))
    np.testing.assert_array_equal(embeddings.quantize_embeddings(A, "int8"), (levels - 128).astype(np.int8))
    by_others = embeddings.quantize_embeddings(A[:2], "int8", calibration_embeddings=A)
    np.testing.assert_array_equal(by_others, embeddings.quantize_embeddings(A, "int8")[:2])
    np.testing.assert_array_equal(embeddings.quantize_embeddings(A[:2], "int8", ranges), by_others)
    # What lies outside the ranges stays at their ends.
    wide = embeddings.quantize_embeddings(1000 * A, "int8", ranges)
    assert (wide.min(), wide.max()) == (-128, 127)
    bits = np.packbits(A > 0, axis=1)
    np.testing.assert_array_equal(embeddings.quantize_embeddings(A, "ubinary"), bits)
    np.testing.assert_array_equal(embeddings.quantize_embeddings(A, "binary").astype(int), bits.astype(int) - 128)
    for text, message in [("int4", "precision: got 'int4'"), ("int8", r"ranges: got shape \[1, 12\]")]:
        with pytest.raises(ValueError, match=message):
            embeddings.quantize_embeddings(A, text, A[0])
