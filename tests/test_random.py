"""Random numbers: no two uses share them, nothing unseeded repeats, and `set_random_seed` makes it repeatable."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import VOCAB_SIZE, small_encoder, small_inputs
from isolated import encoder_with, inputs_of, normalised_rows
from sparse_mixer import initializers, masking, models, optimizers, training
from sparse_mixer._core.seeds import Purpose, derived_seed, generator
from sparse_mixer.models.heads import ProjectionHead

Array = np.ndarray[Any, Any]

COUNT = 4096
ONE_HEAD = {"attention_layers": (0,), "num_attention_heads": 1}


# What a user can see of each of the core's uses: its first COUNT numbers, or what grows or falls with each of them.


def initial_values(seed: int, key: str) -> Array:
    encoder = encoder_with(
        {}, vocab_size=512, max_sequence_length=512, initializer=initializers.RandomUniform(0.0, 1.0), seed=seed
    )
    weight = next(weight for weight in encoder.weights if weight.key == key)
    return weight.numpy().ravel()[:COUNT]


def head_values(seed: int, name: str) -> Array:
    head = models.ClassificationHead(0, 512, initializer=initializers.RandomUniform(0.0, 1.0), name=name)
    model = models.BertPretrainerV2(encoder_with({}), classification_heads=[head], seed=seed)
    return model.heads[name].weights[0].numpy().ravel()


def embedding_dropout(seed: int) -> Array:
    rows = normalised_rows(np.random.default_rng(1), COUNT // 64, 8)
    encoder = encoder_with({}, output_dropout=0.5, semantics="keras_strict", max_sequence_length=8)
    return encoder(inputs_of(rows), training=True, seed=seed)["sequence_output"].ravel() != 0


def sublayer_dropout(seed: int, suffix: str, **arguments: Any) -> Array:
    """A bias of 1000 that is dropped or not, in a stream of order 1."""
    rows = normalised_rows(np.random.default_rng(1), COUNT // 64, 8)
    encoder = encoder_with({suffix: 1000.0}, output_dropout=0.5, max_sequence_length=8, **arguments)
    return np.abs(encoder(inputs_of(rows), training=True, seed=seed)["sequence_output"]).ravel() > 500


def attention_dropout(seed: int) -> Array:
    """Row j of 8 has the value e_j - 1/8, so that an even mean over the kept rows tells which they are."""
    rows = np.broadcast_to(np.eye(8, dtype=np.float32) - 1 / 8, (COUNT // 64, 8, 8)) / np.sqrt(7 / 64)
    weights = {
        "self_attention/value/kernel": 1000 * np.eye(8).reshape(8, 1, 8),
        "attention_output/kernel": np.eye(8).reshape(1, 8, 8),
    }
    options = {"output_dropout": 0.0, "attention_dropout": 0.5, "max_sequence_length": 8}
    encoder = encoder_with(weights, **ONE_HEAD, **options)
    output = encoder(inputs_of(rows.astype(np.float32)), training=True, seed=seed)["sequence_output"]
    return (output - rows).ravel() > -1.0


def jitter(seed: int) -> Array:
    """One feature that is always 1, and a logit that is that feature with its jitter."""
    weights = {"layer_norm/beta": 1.0, "self_attention_layer_norm/beta": 1.0, "output_layer_norm/beta": 1.0}
    encoder = encoder_with(
        {**weights, "router_weights/kernel": [[1.0, 0.0]]},
        hidden_size=1,
        moe_layers=(0,),
        num_experts=2,
        jitter_noise=0.5,
        output_dropout=0.0,
        max_sequence_length=8,
    )
    call = {"training": True, "seed": seed, "outputs": ("routing",)}
    rows = np.zeros((COUNT // 8, 8, 1), np.float32)
    probabilities = encoder(inputs_of(rows), **call)["routing"][0]["probabilities"].reshape(-1, 2)
    return np.asarray(np.log(probabilities[:, 0] / probabilities[:, 1]))


def head_dropout(seed: int, place: str, name: str = "a") -> Array:
    head = ProjectionHead(
        name, encoder_with({}), 8, **{place: 0.5}, output_name=f"{name}/logits", initializer="identity", seed=0
    )
    return head.logits(np.ones((COUNT // 8, 8), np.float32), seed).ravel() != 0


STRICT_EXPERT = {"moe_layers": (0,), "num_experts": 1, "semantics": "keras_strict"}
LAYER = "transformer/layer_0/linear_transform/hidden_kernel"
USES: dict[str, dict[str, Callable[[int], Array]]] = {
    "EncoderWeight": {
        key: lambda seed, key=key: initial_values(seed, key)  # type: ignore[misc]
        for key in (
            "word_embeddings/embeddings",
            "position_embedding/embeddings",
            "transformer/layer_0/linear_transform/seq_kernel",
        )
    },
    "HeadWeight": {name: lambda seed, name=name: head_values(seed, name) for name in ("one", "two")},  # type: ignore[misc]
    "EmbeddingDropout": {"": embedding_dropout},
    "AttentionDropout": {"": attention_dropout},
    "MixingDropout": {"": lambda seed: sublayer_dropout(seed, "attention_output/bias", **ONE_HEAD)},
    "FeedForwardDropout": {"": lambda seed: sublayer_dropout(seed, "layer_0/output/bias")},
    "ExpertDropout": {"": lambda seed: sublayer_dropout(seed, "experts/output/bias", **STRICT_EXPERT)},
    "RouterJitter": {"": jitter},
    "HeadFeatureDropout": {"": lambda seed: head_dropout(seed, "input_dropout")},
    "HeadDropout": {
        "": lambda seed: head_dropout(seed, "dropout"),
        "another head": lambda seed: head_dropout(seed, "dropout", "b"),
    },
}


def centred_ranks(values: Array) -> Array:
    """Ranks less their mean, equal values sharing theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2
    return ranks[places.ravel()] - (len(values) - 1) / 2


def test_no_two_uses_share_random_numbers() -> None:
    """All pairs of uses, the core's and Python's, all from one seed."""
    seed = 11
    seen = {(purpose, place): observe(seed) for purpose, places in USES.items() for place, observe in places.items()}
    seen |= {(str(purpose), ""): generator(purpose, seed).random(COUNT) for purpose in Purpose}
    seen |= {("a program's own generator", ""): np.random.default_rng(seed).random(COUNT)}
    ranks = {}
    for use, values in seen.items():
        assert values.shape == (COUNT,), use
        ranks[use] = centred_ranks(values)
        ranks[use] /= np.linalg.norm(ranks[use])
    for one, other in itertools.combinations(ranks, 2):
        correlation = float(ranks[one] @ ranks[other])
        assert abs(correlation) < 5 / np.sqrt(COUNT), f"{one} and {other}: {correlation:.3f}"


def test_every_use_of_the_core_is_compared() -> None:
    source = (Path(__file__).parents[1] / "src" / "random.rs").read_text()
    declared = re.findall(r"^    (\w+) = \d+,$", source, re.MULTILINE)
    assert declared
    assert declared == list(USES), "a use of random numbers is missing from USES above"


def test_derived_seeds_depend_on_every_argument() -> None:
    places: list[tuple[int | str, ...]] = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), ("",), ("a",), ("a", "b"), ("ab",)]
    seeds = [derived_seed(purpose, seed, *place) for purpose in Purpose for seed in (0, 1, 2**63) for place in places]
    assert len(set(seeds)) == len(seeds)


# Unseeded ---------------------------------------------------------------------------------------------------------


def kernel(model: models.Model) -> Array:
    return next(w for head in model.heads.values() for w in head.weights if w.key.endswith("kernel")).numpy()


def all_models(encoder: Any, **seed: Any) -> list[models.Model]:
    return [
        models.BertClassifier(encoder, 2, **seed),
        models.BertTokenClassifier(encoder, 2, **seed),
        models.BertSpanLabeler(encoder, **seed),
        models.BertPretrainerV2(encoder, **seed),
    ]


def test_unseeded_heads_differ_and_seeded_ones_do_not() -> None:
    encoder = small_encoder()
    for one, other in zip(all_models(encoder), all_models(encoder), strict=True):
        assert (kernel(one) != kernel(other)).all()
    for one, other in zip(all_models(encoder, seed=3), all_models(encoder, seed=3), strict=True):
        np.testing.assert_array_equal(kernel(one), kernel(other))
    of_initializer = [
        models.BertClassifier(encoder, 2, initializer=initializers.GlorotUniform(seed=5)) for _ in range(2)
    ]
    np.testing.assert_array_equal(kernel(of_initializer[0]), kernel(of_initializer[1]))


def training_call(model: models.Model, **seed: Any) -> Array:
    """All floats that a training call of the model gives, in one row."""
    outputs = model(small_inputs(), training=True, **seed)
    if isinstance(outputs, dict):
        outputs = [array for array in outputs.values() if isinstance(array, np.ndarray)]
    return np.concatenate([np.ravel(array) for array in outputs])


@pytest.mark.parametrize("seed", [7, None])
def test_calls_of_models_drop_differently_each_time(seed: int | None) -> None:
    for model in all_models(small_encoder(seed=seed)):
        calls = [training_call(model) for _ in range(10)]
        assert np.std(calls, axis=0).mean() > 0.01
        np.testing.assert_array_equal(training_call(model, seed=1), training_call(model, seed=1))


def test_heads_alone_drop_differently_each_time() -> None:
    """Without dropout in the encoder, only the head's own can make the difference."""
    model = models.BertClassifier(small_encoder(output_dropout=0.0, attention_dropout=0.0), 2, dropout_rate=0.5)
    outputs = [model(small_inputs(), training=True) for _ in range(10)]
    assert np.std(outputs, axis=0).mean() > 0.01


def labelled(examples: int = 24) -> tuple[dict[str, Array], Array]:
    inputs = small_inputs(examples)
    return inputs, (inputs["input_word_ids"][:, 0] >= VOCAB_SIZE // 2).astype(np.int64)


def order_of_a_fit(model: models.Model, optimizer: optimizers.Optimizer, **arguments: Any) -> tuple[bytes, set[int]]:
    """The words of all batches in a row, and the seeds that the batches came with."""
    words, seeds = [], []

    def record(batch: Any, seed: int) -> Any:
        words.append(batch[0]["input_word_ids"].tobytes())
        seeds.append(seed)
        return batch

    options = {"batch_size": 8, "transform": record, "progress": False}
    model.fit(labelled(), optimizer=optimizer, **options, **arguments)
    return b"".join(words), set(seeds)


@pytest.mark.parametrize("seed", [5, None])
def test_a_second_fit_does_not_repeat_the_first(seed: int | None) -> None:
    model, optimizer = models.BertClassifier(small_encoder(), 2), optimizers.SGD(0.01)
    orders, seeds = zip(*(order_of_a_fit(model, optimizer, epochs=2, seed=seed) for _ in range(2)), strict=True)
    assert orders[0] != orders[1]
    assert not seeds[0] & seeds[1]


def test_two_fits_are_one_long_fit() -> None:
    def fitted(*epochs: int) -> list[Array]:
        model = models.BertClassifier(small_encoder(), 2, seed=0)
        optimizer = optimizers.AdamW(1e-3)
        for count in epochs:
            model.fit(labelled(), optimizer=optimizer, epochs=count, batch_size=7, seed=1, progress=False)
        return model.get_weights()

    for one, other in zip(fitted(3), fitted(1, 2), strict=True):
        np.testing.assert_array_equal(one, other)


def unseeded_program() -> list[Array]:
    """Everything that can do without a seed."""
    encoder = small_encoder(seed=None)
    orthogonal = small_encoder(seed=None, initializer="orthogonal")
    model = models.BertClassifier(encoder, 2, initializer="orthogonal")
    masked = masking.mask_tokens(
        small_inputs(8), mask_id=4, vocab_size=VOCAB_SIZE, special_ids=range(5), max_predictions=3, rate=0.5
    )
    called = [encoder(small_inputs(), training=True)["pooled_output"], model(small_inputs(), training=True)]
    order, _ = order_of_a_fit(model, optimizers.SGD(0.01))
    return [
        *encoder.get_weights(),
        *orthogonal.get_weights(),
        *model.get_weights(),
        masked["masked_lm_positions"],
        masked["input_word_ids"],
        *called,
        np.frombuffer(order, np.uint8),
    ]


def test_set_random_seed_seeds_whatever_has_none() -> None:
    try:
        runs = []
        for seed in (3, 3, 4, None):
            sparse_mixer.set_random_seed(seed)
            runs.append(unseeded_program())
        for one, again, other, free in zip(*runs, strict=True):
            np.testing.assert_array_equal(one, again)
            # All but biases and norms, which are not random.
            if len(np.unique(one)) > 2:
                assert (one != other).any()
                assert (one != free).any()
        # Also the calls of an unseeded encoder that was there before.
        encoder = small_encoder(seed=None)
        calls = []
        for _ in range(2):
            sparse_mixer.set_random_seed(5)
            calls.append([encoder(small_inputs(), training=True)["pooled_output"] for _ in range(2)])
        np.testing.assert_array_equal(calls[0], calls[1])
        assert (calls[0][0] != calls[0][1]).any()
    finally:
        sparse_mixer.set_random_seed(None)


def test_set_random_seed_leaves_given_seeds_alone() -> None:
    try:
        weights = []
        for seed in (1, 2):
            sparse_mixer.set_random_seed(seed)
            weights.append(kernel(models.BertClassifier(small_encoder(), 2, seed=0)))
        np.testing.assert_array_equal(*weights)
    finally:
        sparse_mixer.set_random_seed(None)


@pytest.mark.parametrize(
    ("seed", "error"), [(1.5, TypeError), (True, TypeError), (-1, ValueError), (2**64, ValueError)]
)
def test_set_random_seed_checks_its_argument(seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^seed: "):
        sparse_mixer.set_random_seed(seed)


def test_an_unseeded_run_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """The state has the seed that was drawn; stopped in the middle of an epoch."""

    class Stop(training.Callback):
        def on_step_end(self, trainer: Any, logs: Any) -> None:
            trainer.stop = trainer.step == 4

    def trainer(*more: training.Callback, **options: Any) -> training.Trainer:
        model = models.BertClassifier(small_encoder(), 2, seed=0)
        return training.Trainer(
            model, labelled(), optimizer=optimizers.AdamW(1e-3), epochs=3, batch_size=8, callbacks=more, **options
        )

    path = tmp_path / "state.npz"
    try:
        sparse_mixer.set_random_seed(8)
        whole = trainer()
        whole.run()
        sparse_mixer.set_random_seed(8)
        trainer(Stop(), state_path=path).run()
    finally:
        sparse_mixer.set_random_seed(None)
    rest = trainer(state_path=path)
    rest.restore(path)
    assert rest.run() == whole.history
    for one, other in zip(whole.model.get_weights(), rest.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="saved by a run with seed"):
        trainer(seed=1).restore(path)
