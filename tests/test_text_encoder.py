"""`TextEncoder`: what `sentence-transformers` and fastembed give for the same folder and the same calls."""

from __future__ import annotations

import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
import sparse_mixer
from sparse_mixer import CheckpointError, SparseMixer, TextEncoder, embeddings
from sparse_mixer.text import load_tokenizer, train_tokenizer
from text_models import LETTERS, POOLING, folder_of

TEXTS = ["a b c", "ABC", "k", "l k j i", "", "b. b", "a b c d e f g h i j"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("model") / "mini")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextEncoder:
    return TextEncoder(folder)


def tokens_of(model: TextEncoder, text: str) -> tuple[Any, list[int]]:
    """The vectors of a text's tokens, by the encoder alone, and their ids."""
    own = model.tokenizer.encode(text, add_special_tokens=False).ids[: model.max_seq_length - 2]
    ids = [2, *own, 3]
    batch = {"input_word_ids": np.array([ids]), "input_type_ids": np.zeros((1, len(ids)), int)}
    outputs = model.encoder({**batch, "input_mask": np.ones((1, len(ids)))})
    return outputs["sequence_output"][0].astype(np.float64), ids


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_vectors_are_pooled_tokens(model: TextEncoder) -> None:
    with pytest.warns(UserWarning, match=r"inputs\[6\]: more than max_seq_length=8 tokens"):
        vectors = model.encode(TEXTS)
    assert vectors.shape == (7, 16)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, unit(tokens_of(model, text)[0].mean(axis=0)), atol=2e-6)
    assert model.get_embedding_dimension() == 16
    assert model.encode("a").shape == (16,)
    assert model.encode([]).shape == (0, 16)
    assert [v.shape for v in model.encode(TEXTS[:2], convert_to_numpy=False)] == [(16,)] * 2
    assert sparse_mixer.TextEncoder is TextEncoder
    assert "mean pooling, up to 8 tokens" in repr(model)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "pooled"])
def test_modes_of_pooling(folder: Path, mode: str) -> None:
    model = TextEncoder(folder, pooling=mode)
    model.normalize = False
    for text in TEXTS[:4]:
        x, _ = tokens_of(model, text)
        weights = np.arange(1, len(x) + 1)[:, None]
        expected = {
            "cls": x[0],
            "max": x.max(axis=0),
            "mean": x.mean(axis=0),
            "mean_sqrt_len_tokens": x.sum(axis=0) / np.sqrt(len(x)),
            "weightedmean": (x * weights).sum(axis=0) / weights.sum(),
            "lasttoken": x[-1],
        }
        if mode == "pooled":
            kernel, bias = (variable.numpy() for variable in model.encoder.pooler_layer.all_variables)
            expected[mode] = np.tanh(x[0] @ kernel + bias)
        np.testing.assert_allclose(model.encode(text), expected[mode], atol=2e-6)
    both = TextEncoder(folder, pooling=("cls", mode))
    both.normalize = False
    np.testing.assert_array_equal(both.encode("a b")[16:], model.encode("a b"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_text_has_the_same_bits_in_any_batch(folder: Path, dtype: str) -> None:
    random = np.random.default_rng(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "inner_dim": 96, "num_attention_heads": 2}
    layers: dict[str, Any] = {"attention_layers": (0, 1), "moe_layers": (), "shorter_sequences": True}
    encoder = SparseMixer(30, **sizes, **layers, max_sequence_length=120, dtype=dtype, seed=0)
    tokenizer = load_tokenizer(folder / "vocab.txt")
    texts = [" ".join(random.choice(list(LETTERS), random.integers(1, 110))) for _ in range(60)]
    for pooling in ("mean", "max", ("weightedmean", "pooled")):
        model = TextEncoder(encoder, tokenizer, pooling=pooling)
        alone = np.stack([model.encode(text, normalize_embeddings=True) for text in texts])
        for batch_size in (3, 32, 60):
            together = model.encode(texts, batch_size=batch_size, normalize_embeddings=True)
            np.testing.assert_array_equal(together, alone)
    for threads in (1, 3):
        model.encoder.num_threads = threads
        np.testing.assert_array_equal(model.encode(texts, normalize_embeddings=True), alone)


def test_sparse_mixers_see_the_length_that_they_were_built_for() -> None:
    tokenizer = train_tokenizer(["red apples and green pears"], 60)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "inner_dim": 32, "num_experts": 2}
    encoder = SparseMixer(60, **sizes, moe_layers=(1,), attention_layers=(), max_sequence_length=12, seed=1)
    model = TextEncoder(encoder, tokenizer, pooling="mean")
    vector = model.encode("red pears")
    inputs = sparse_mixer.text.encode(tokenizer, ["red pears"], 12)
    rows = encoder(inputs)["sequence_output"][0][inputs["input_mask"][0] == 1]
    np.testing.assert_allclose(vector, rows.mean(axis=0), atol=2e-6)
    np.testing.assert_array_equal(model.encode(["red pears", "apples", "green and red"])[0], vector)


def test_prompts(tmp_path: Path) -> None:
    prompts = {"query": "a b ", "passage": "c "}
    about = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "dot"}
    model = TextEncoder(folder_of(tmp_path / "one", config_sentence_transformers=about))
    plain = model.encode("k l")
    queried = model.encode("a b k l")
    np.testing.assert_array_equal(model.encode("k l", "query"), queried)
    np.testing.assert_array_equal(model.encode("k l", prompt="a b "), queried)
    np.testing.assert_array_equal(model.encode_query("k l"), queried)
    np.testing.assert_array_equal(model.encode_document("k l"), model.encode("c k l"))
    assert np.abs(plain - queried).max() > 1e-3
    with pytest.raises(ValueError, match=r"prompt_name: got 'x', expected one of \['passage', 'query'\]"):
        model.encode("k", "x")
    np.testing.assert_array_equal(TextEncoder(tmp_path / "one", default_prompt_name="query").encode("k l"), queried)
    # Prompts that are read but not pooled.
    other = TextEncoder(folder_of(tmp_path / "two", pooling={**POOLING, "include_prompt": False}, normalize=False))
    x, _ = tokens_of(other, "a b k l")
    np.testing.assert_allclose(other.encode("k l", prompt="a b "), x[3:].mean(axis=0), atol=2e-6)


def test_shortening(model: TextEncoder, folder: Path) -> None:
    whole = model.encode(TEXTS[:4])
    cut = model.encode(TEXTS[:4], truncate_dim=5)
    np.testing.assert_array_equal(cut, whole[:, :5])
    np.testing.assert_allclose(
        model.encode(TEXTS[:4], truncate_dim=5, normalize_embeddings=True), unit(cut.astype(float)), atol=1e-6
    )
    short = TextEncoder(folder, truncate_dim=5)
    assert short.get_embedding_dimension() == 5
    np.testing.assert_array_equal(short.encode(TEXTS[:4]), cut)
    with pytest.raises(ValueError, match="truncate_dim: got 17, expected at most 16"):
        model.encode("a", truncate_dim=17)
    for precision, dtype, width in [("int8", "int8", 16), ("uint8", "uint8", 16), ("binary", "int8", 2)]:
        few = model.encode(TEXTS[:4], precision=precision)
        assert (few.dtype.name, few.shape) == (dtype, (4, width))
        np.testing.assert_array_equal(few, embeddings.quantize_embeddings(whole, precision))
    out = np.zeros((4, 16), np.float32)
    assert model.encode(TEXTS[:4], out=out) is out
    np.testing.assert_array_equal(out, whole)
    with pytest.raises(ValueError, match=r"out: expected an array float32 \[4, 16\]"):
        model.encode(TEXTS[:4], out=out[:3])


def test_texts_that_are_too_long(model: TextEncoder) -> None:
    with pytest.raises(ValueError, match=r"inputs\[1\]: more than max_seq_length=8"):
        model.encode(["a", "a b c d e f g h"], on_truncation="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode("a b c d e f g h", on_truncation="ignore")
        model.encode("a b c d e f")
    assert model.token_count("a b c d e f g h") == 10
    assert model.token_count(TEXTS) == [5, 5, 3, 6, 2, 5, 12]
    with pytest.raises(ValueError, match="max_seq_length: got 9, expected 3 to 8"):
        model.max_seq_length = 9


def test_chunks(model: TextEncoder) -> None:
    text = "a b c d e f g h i j k l"
    vectors, spans = model.encode_chunks(text, 5, 2)
    assert [text[begin:end] for begin, end in spans] == ["a b c d e", "d e f g h", "g h i j k", "j k l"]
    for vector, (begin, end) in zip(vectors, spans, strict=True):
        np.testing.assert_array_equal(vector, model.encode(text[begin:end]))
    assert model.encode_chunks("").embeddings.shape == (0, 16)
    assert [text[a:b] for a, b in model.encode_chunks(text).spans] == ["a b c d e f", "g h i j k l"]
    with pytest.raises(ValueError, match="chunk_tokens: got 7, expected at most 6"):
        model.encode_chunks(text, 7)
    with pytest.raises(ValueError, match="overlap: got 3"):
        model.encode_chunks(text, 3, 3)


def test_embed_is_a_generator(model: TextEncoder) -> None:
    taken = 0

    def texts() -> Any:
        nonlocal taken
        for text in TEXTS[:6] * 5:
            taken += 1
            yield text

    stream = model.embed(texts(), batch_size=4)
    first = next(stream)
    assert taken == 4
    rest = list(stream)
    np.testing.assert_array_equal(np.stack([first, *rest]), model.encode(TEXTS[:6] * 5))
    assert len(list(model.embed("a"))) == 1


def test_token_embeddings_and_pairs(model: TextEncoder) -> None:
    listed = model.encode(TEXTS[:4], output_value="token_embeddings")
    assert [len(x) for x in listed] == model.token_count(TEXTS[:4])
    np.testing.assert_allclose(listed[0], tokens_of(model, TEXTS[0])[0], atol=1e-6)
    assert model.encode([("a", "b"), ("a", "c")]).shape == (2, 16)
    # As there, a tuple of texts is no pair but so many texts.
    np.testing.assert_array_equal(model.encode(("a", "b")), model.encode(["a", "b"]))
    assert np.abs(model.encode([("a", "b")])[0] - model.encode("a b")).max() > 1e-3


def test_similarities(model: TextEncoder, tmp_path: Path) -> None:
    vectors = model.encode(TEXTS[:4])
    np.testing.assert_allclose(model.similarity(vectors, vectors), vectors @ vectors.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(vectors, vectors), np.ones(4), atol=1e-6)
    far = TextEncoder(folder_of(tmp_path / "far"), similarity_fn_name="euclidean")
    assert far.similarity(vectors, vectors[:2]).shape == (4, 2)
    with pytest.raises(ValueError, match="similarity_fn_name: got 'x'"):
        TextEncoder(tmp_path / "far", similarity_fn_name="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert_to_tensor": True}, "convert_to_tensor"),
        ({"device": "cuda"}, "device: got 'cuda'"),
        ({"pool": {}}, "pool: expected None"),
        ({"output_value": "x"}, "output_value: got 'x'"),
        ({"precision": "int4"}, "precision: got 'int4'"),
        ({"on_truncation": "x"}, "on_truncation: got 'x'"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_is_not_done_is_said(model: TextEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(["a"], **options)


@pytest.mark.parametrize("inputs", [3, {"a": 1}, b"a", ["a", 3], None])
def test_only_texts(model: TextEncoder, inputs: Any) -> None:
    with pytest.raises(TypeError, match="inputs"):
        model.encode(inputs)


def test_a_tokenizers_own_lengths_are_not_heeded(folder: Path, tmp_path: Path) -> None:
    """As in all-MiniLM-L6-v2, whose file pads and cuts to 128 tokens where 256 are meant."""
    plain = TextEncoder(folder)
    tokenizer = load_tokenizer(folder / "vocab.txt")
    tokenizer.enable_padding(length=6)
    tokenizer.enable_truncation(4)
    other = folder_of(tmp_path / "other")
    tokenizer.save(str(other / "tokenizer.json"))
    for model in (TextEncoder(other), TextEncoder(folder, tokenizer)):
        assert model.token_count("a b c d") == 6
        np.testing.assert_array_equal(model.encode(["a b c d", "k"]), plain.encode(["a b c d", "k"]))


def test_folders(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "one", sentence_bert_config={"max_seq_length": 6, "do_lower_case": True})
    assert TextEncoder(path).max_seq_length == 6
    assert TextEncoder(path, max_seq_length=4).max_seq_length == 4
    path = folder_of(tmp_path / "two", pooling={"pooling_mode": "cls"}, tokenizer_config={"model_max_length": 5})
    model = TextEncoder(path, dtype="bfloat16", num_threads=1)
    assert (model.pooling, model.max_seq_length, model.encoder.dtype) == (("cls",), 5, "bfloat16")
    old = {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    assert TextEncoder(folder_of(tmp_path / "three", pooling=old)).pooling == ("max", "mean")
    # A folder of `transformers`, without more.
    (path / "modules.json").unlink()
    assert TextEncoder.load(path).pooling == ("mean",)
    for kind in ("Dense", "LSTM"):
        path = folder_of(tmp_path / "four")
        text = (path / "modules.json").read_text().replace("models.Normalize", f"models.{kind}")
        (path / "modules.json").write_text(text)
        with pytest.raises(CheckpointError, match=kind):
            TextEncoder(path)
    path = folder_of(tmp_path / "five")
    (path / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, vocab\.txt, merges\.txt or sentencep"):
        TextEncoder(path)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a usable tokenizer"):
        TextEncoder(path)
    for name, text in [("modules.json", "[{}]"), ("modules.json", "["), ("1_Pooling/config.json", "[]")]:
        path = folder_of(tmp_path / "six")
        (path / name).write_text(text)
        with pytest.raises(CheckpointError, match="six"):
            TextEncoder(path)


def test_copies_and_threads(model: TextEncoder) -> None:
    expected = model.encode(TEXTS[:6])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS[:6]), expected)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(model.encode(TEXTS[:6]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_progress(model: TextEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    model.encode(TEXTS[:3])
    assert capfd.readouterr() == ("", "")
    model.encode(TEXTS[:3], show_progress_bar=True)
    assert "3" in capfd.readouterr().err


def test_adapters(tmp_path: Path) -> None:
    import asyncio

    from sparse_mixer.text.adapters import ChromaEmbeddingFunction, LangChainEmbeddings

    about = {"prompts": {"query": "a b ", "document": "c "}}
    model = TextEncoder(folder_of(tmp_path / "model", config_sentence_transformers=about))
    chain = LangChainEmbeddings(model, batch_size=2)
    documents = model.encode(["c k", "c l"])
    assert chain.embed_documents(["k", "l"]) == documents.tolist()
    assert asyncio.run(chain.aembed_documents(["k", "l"])) == documents.tolist()
    assert chain.embed_query("k") == asyncio.run(chain.aembed_query("k")) == model.encode("a b k").tolist()
    chroma = ChromaEmbeddingFunction(model)
    np.testing.assert_array_equal(chroma(input=["k", "l"]), documents)
    np.testing.assert_array_equal(chroma.embed_query(input=["k"])[0], model.encode("a b k"))


def test_vectors_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """Stored vectors, made by ``tests/reference/make_sentence_vectors.py``."""
    expected = np.load(Path(__file__).parent / "golden" / "sentence_vectors" / "vectors.npz")
    texts = expected["texts"].tolist()
    path = folder_of(tmp_path / "model", normalize=False)
    for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"):
        vectors = TextEncoder(path, pooling=mode).encode(texts, on_truncation="ignore")
        np.testing.assert_allclose(vectors, expected[mode], atol=2e-6, err_msg=mode)
    model = TextEncoder(path)
    options: dict[str, Any] = {"on_truncation": "ignore"}
    np.testing.assert_allclose(
        model.encode(texts, normalize_embeddings=True, **options), expected["normalized"], atol=2e-6
    )
    np.testing.assert_allclose(model.encode(texts, prompt="a b ", **options), expected["prompted"], atol=2e-6)
    np.testing.assert_array_equal(model.encode(texts, precision="ubinary", **options), expected["ubinary"])
    skipping = TextEncoder(folder_of(path, pooling={**POOLING, "include_prompt": False}, normalize=False))
    np.testing.assert_allclose(
        skipping.encode(texts, prompt="a b ", **options), expected["prompt_not_pooled"], atol=2e-6
    )


@pytest.mark.parametrize("layers", [{"attention_layers": (), "mixing_mechanism": "fourier"}, {"moe_layers": (1,)}])
def test_padding_that_takes_part_is_always_of_one_length(folder: Path, layers: dict[str, Any]) -> None:
    """Also where the encoder would take a shorter sequence, with other results."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "inner_dim": 32, "num_experts": 2}
    own = {"attention_layers": (0, 1), "moe_layers": (), "shorter_sequences": True, **layers}
    encoder = SparseMixer(30, **sizes, **own, num_attention_heads=2, max_sequence_length=12, seed=1)
    model = TextEncoder(encoder, load_tokenizer(folder / "vocab.txt"))
    ids = [2, *model.tokenizer.encode("a b", add_special_tokens=False).ids, 3]
    inputs = {name: np.zeros((1, 12), int) for name in ("input_word_ids", "input_mask", "input_type_ids")}
    inputs["input_word_ids"][0, :4], inputs["input_mask"][0, :4] = ids, 1
    rows = encoder(inputs)["sequence_output"][0, :4]
    np.testing.assert_allclose(model.encode("a b"), rows.mean(axis=0), atol=2e-6)
    short = encoder({name: array[:, :4] for name, array in inputs.items()})["sequence_output"][0]
    assert np.abs(short - rows).max() > 1e-3


def test_lower_casing_as_the_folder_says(tmp_path: Path) -> None:
    cased = {"tokenizer_config": {"do_lower_case": False}}
    plain = TextEncoder(folder_of(tmp_path / "plain", **cased))
    lower = TextEncoder(folder_of(tmp_path / "lower", **cased, sentence_bert_config={"do_lower_case": True}))
    assert np.abs(plain.encode("A b") - plain.encode("a b")).max() > 1e-3
    np.testing.assert_array_equal(lower.encode("A b"), plain.encode("a b"))


def test_the_two_steps_give_what_encode_gives(model: TextEncoder) -> None:
    tokens = model.to_tokens(TEXTS[:6])
    assert tokens[0].ids[0] == 2
    assert [model.positions(one) for one in tokens] == [len(one.ids) for one in tokens]
    np.testing.assert_array_equal(model.encode_tokens(tokens, 4), model.encode(TEXTS[:6]))
    shorter = model.encode_tokens(tokens, truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_array_equal(shorter, model.encode(TEXTS[:6], truncate_dim=5, normalize_embeddings=True))
    with pytest.raises(ValueError, match=r"inputs\[10\]: more than max_seq_length=8"):
        model.to_tokens(TEXTS[6:], on_truncation="error", first=10)
