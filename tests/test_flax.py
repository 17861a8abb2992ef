"""`SparseMixer.from_flax`: parameters and checkpoints of the paper's JAX code, with its configurations."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax_cases import assert_close, jax_case, jax_names
from sparse_mixer import CheckpointError, SparseMixer, checkpoints, models, optimizers
from sparse_mixer.checkpoints.opening import open_weights

GOLDEN = Path(__file__).parent / "golden" / "jax"
CHECKPOINTS = ["ckpt_bert_replicated_only", "ckpt_linear_2_devices"]
SMALL_BERT = {"vocab_size": 9, "hidden_size": 8, "inner_dim": 8, "num_attention_heads": 2}


def expected_of(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Configuration and arrays of a checkpoint folder's ``expected.npz``."""
    with np.load(GOLDEN / name / "expected.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("config"))), arrays


def nested(paths: dict[str, Any]) -> dict[str, Any]:
    """Parameters as Flax holds them."""
    tree: dict[str, Any] = {}
    for path, array in paths.items():
        *folders, leaf = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = array
    return tree


@pytest.mark.parametrize("name", jax_names("encoder", "pretraining", "classification"))
def test_parameters_and_configuration_give_the_outputs(name: str) -> None:
    case = jax_case(name)
    encoder = SparseMixer.from_flax(case.part("params/"), case.config, group_mixup=True)
    outputs = encoder(case.inputs, training=case.training)
    for key in ("sequence_output", "pooled_output"):
        assert_close(key, outputs[key], case.data[f"outputs/{key}"])
    assert encoder.get_config() == SparseMixer(**case.arguments(), group_mixup=True).get_config()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_folders_hold_the_parameters_and_give_the_outputs(name: str) -> None:
    config, expected = expected_of(name)
    encoder = SparseMixer.from_flax(GOLDEN / name, config)
    inputs = {"input_word_ids": expected["inputs/input_ids"], "input_type_ids": expected["inputs/type_ids"]}
    outputs = encoder(inputs)
    for key in ("sequence_output", "pooled_output"):
        assert_close(key, outputs[key], expected[f"outputs/{key}"])
    # The parameters, to the bit: loaded from the merged ones they make the same encoder.
    merged = SparseMixer.from_flax({k: v for k, v in expected.items() if k.startswith("params/")}, config)
    for ours, theirs in zip(encoder.weights, merged.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.key)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_folders_hold_heads_step_and_moments(name: str) -> None:
    _, expected = expected_of(name)
    file = open_weights(GOLDEN / name)
    found = {key: file.read(index) for index, (key, _, _) in enumerate(file.entries())}
    places = {"opt/mu/": "opt_state/0/mu/", "opt/nu/": "opt_state/0/nu/", "params/": "params/"}
    compared = 0
    for key, value in expected.items():
        for ours, theirs in places.items():
            if key.startswith(ours):
                np.testing.assert_array_equal(found[theirs + key.removeprefix(ours)], value, err_msg=key)
                compared += 1
    assert compared == sum(key.startswith(("params/", "opt_state/0/mu/", "opt_state/0/nu/")) for key in found)
    assert found["step"] == expected["step"]
    assert found["opt_state/0/count"] == expected["opt/count"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_moments_continue_the_training(name: str) -> None:
    """An update with the checkpoint's moments is that of the formula, weight by weight."""
    config, expected = expected_of(name)
    encoder = SparseMixer.from_flax(GOLDEN / name, config)
    optimizer = optimizers.AdamW(1e-2, weight_decay=0.0, epsilon=1e-6)
    state = checkpoints.read_adam_state(encoder, GOLDEN / name)
    optimizer.set_state(*state)
    steps, moments = state
    assert steps == expected["opt/count"]
    before = {weight.key: weight.numpy().astype(np.float64) for weight in encoder.weights}
    random = np.random.default_rng(0)
    gradients = {weight.key: random.normal(size=weight.shape).astype(np.float32) for weight in encoder.weights}
    optimizer.apply_gradients(encoder, gradients)
    for weight in encoder.weights:
        m = 0.9 * moments[f"{weight.key}/m"] + 0.1 * gradients[weight.key]
        v = 0.999 * moments[f"{weight.key}/v"] + 0.001 * gradients[weight.key] ** 2
        update = m / (1 - 0.9 ** (steps + 1)) / ((np.sqrt(v) + 1e-6) / np.sqrt(1 - 0.999 ** (steps + 1)))
        np.testing.assert_allclose(weight.numpy(), before[weight.key] - 1e-2 * update, atol=2e-6, err_msg=weight.key)
    expert = "transformer/layer_1/moe/experts/output/kernel"
    if expert in before:
        stored = expected["opt/mu/encoder/expert_1/output/kernel"]
        np.testing.assert_array_equal(moments[f"{expert}/m"], stored.swapaxes(0, 1))
    with pytest.raises(CheckpointError, match="no state of an Adam"):
        checkpoints.read_adam_state(encoder, {key: value for key, value in expected.items() if "params" in key})
    other = SparseMixer.from_preset("bert_base", **SMALL_BERT)
    with pytest.raises(CheckpointError, match="not those of this encoder"):
        checkpoints.read_adam_state(other, GOLDEN / name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_heads_of_checkpoint_folders_give_the_logits(name: str) -> None:
    config, expected = expected_of(name)
    encoder = SparseMixer.from_flax(GOLDEN / name, config)
    head = models.ClassificationHead(0, 2, use_encoder_pooler=True)
    model = models.BertPretrainerV2(encoder, "gelu_tanh", classification_heads=[head], seed=0)
    model.load_flax_heads(GOLDEN / name)
    outputs = model(
        {
            "input_word_ids": expected["inputs/input_ids"],
            "input_type_ids": expected["inputs/type_ids"],
            "masked_lm_positions": expected["inputs/masked_lm_positions"],
        }
    )
    logits = outputs["mlm_logits"].reshape(expected["outputs/masked_lm_logits"].shape)
    assert_close("mlm_logits", logits, expected["outputs/masked_lm_logits"])
    assert_close("next_sentence", outputs["next_sentence"], expected["outputs/next_sentence_logits"])


def test_heads_that_are_not_those_of_the_file_are_refused() -> None:
    case = jax_case("classification_3_classes")
    encoder = SparseMixer.from_flax(case.part("params/"), case.config)
    model = models.BertClassifier(encoder, 3, seed=0)
    model.load_flax_heads(nested(case.part("params/")))
    assert_close("logits", model(case.inputs), case.data["outputs/logits"])
    before = model.heads["sentence_prediction"].get_weights()
    for wrong, error, message in [
        (models.BertClassifier(encoder, 2, seed=0), ValueError, r"expected shape \(.*, 2\)"),
        (
            models.BertClassifier(encoder, 3, use_encoder_pooler=False, seed=0),
            CheckpointError,
            "no weight like .*pooler_dense",
        ),
        (models.BertPretrainerV2(encoder, seed=0), CheckpointError, "missing: predictions_"),
    ]:
        with pytest.raises(error, match=message):
            wrong.load_flax_heads(case.part("params/"))
    with pytest.raises(CheckpointError, match="missing: classification"):
        model.load_flax_heads(case.part("params/encoder/"))
    for now, then in zip(model.heads["sentence_prediction"].get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_nested_parameters_and_missing_vocabulary_size() -> None:
    case = jax_case("linear_experts_choose")
    config = {key: value for key, value in case.config.items() if key != "vocab_size"}
    encoder = SparseMixer.from_flax(nested(case.part("params/")), config)
    assert encoder.arguments.vocab_size == case.config["vocab_size"]
    assert_close("sequence_output", encoder(case.inputs)["sequence_output"], case.data["outputs/sequence_output"])


def test_missing_keys_have_the_defaults_of_the_jax_code() -> None:
    random = np.random.default_rng(0)
    small = {"d_emb": 8, "d_model": 8, "d_ff": 8, "expert_d_ff": 8, "max_seq_length": 16, "num_heads": 2}
    model = SparseMixer(
        40,
        hidden_size=8,
        inner_dim=8,
        num_attention_heads=2,
        max_sequence_length=16,
        type_vocab_size=4,
        semantics="paper",
    )
    named = {weight.key: random.normal(size=weight.shape).astype(np.float32) for weight in model.weights}
    # The names of any scheme will do, with the JAX code's configuration.
    encoder = SparseMixer.from_flax(named, {**small, "pad_id": 0})
    assert (encoder.arguments.num_layers, encoder.arguments.num_experts) == (14, 16)
    assert encoder.arguments.moe_layers == (5, 6, 7, 8)
    assert encoder.arguments.attention_layers == (10, 11, 12, 13)
    assert encoder.arguments.router == "experts_choose"
    assert encoder.arguments.semantics == "paper"


def test_keys_that_do_not_belong_to_the_encoder_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Without a warning: people turn warnings into errors, and every training configuration has such keys."""
    case = jax_case("bert")
    config = {**case.config, "learning_rate": 1e-4, "train_batch_size": 64}
    with caplog.at_level(logging.INFO, "sparse_mixer"):
        encoder = SparseMixer.from_flax(case.part("params/"), config)
    for keys in (encoder.ignored_config_keys, encoder.astype("bfloat16").ignored_config_keys):
        assert {"learning_rate", "train_batch_size"} <= set(keys)
        assert not {"d_model", "pad_id", "num_experts"} & set(keys)
    assert "learning_rate" in caplog.text
    assert SparseMixer.from_preset("bert_base", **SMALL_BERT).ignored_config_keys == ()


def test_configurations_like_mappings() -> None:
    """Such as ``ml_collections.ConfigDict``, which the JAX code uses and which is no `Mapping`."""

    class ConfigDict:
        def __init__(self, content: dict[str, Any]) -> None:
            self._content = content

        def keys(self) -> Any:
            return self._content.keys()

        def items(self) -> Any:
            return self._content.items()

        def __getitem__(self, key: str) -> Any:
            return self._content[key]

    case = jax_case("bert")
    encoder = SparseMixer.from_flax(case.part("params/"), ConfigDict(case.config))
    assert encoder.get_config() == SparseMixer.from_flax(case.part("params/"), case.config).get_config()


def test_selected_experts_count_only_where_tokens_choose() -> None:
    case = jax_case("linear_experts_choose")
    encoder = SparseMixer.from_flax(case.part("params/"), {**case.config, "num_selected_experts": 2})
    assert encoder.arguments.num_selected_experts == 1
    config = {**case.config, "num_selected_experts": 2, "dispatch_algorithm": "MASK_TOKENS_CHOOSE"}
    assert SparseMixer.from_flax(case.part("params/"), config).arguments.num_selected_experts == 2


def test_names_in_any_case_and_enumerations() -> None:
    import enum

    class Layout(enum.Enum):
        TOP = 3

    case = jax_case("linear_experts_choose")
    config = {**case.config, "model_arch": "LINEAR", "attention_layout": Layout.TOP}
    assert SparseMixer.from_flax(case.part("params/"), config).arguments.attention_layers == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_arch": "roberta"}, "model_arch: got 'roberta', expected one of 'BERT'"),
        ({"dispatch_algorithm": "random"}, "dispatch_algorithm: got 'random'"),
        ({"attention_layout": "left"}, "layout: got 'left'"),
        ({"pad_id": None}, "'pad_id' is missing"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    case = jax_case("linear_experts_choose")
    with pytest.raises(ValueError, match=message):
        SparseMixer.from_flax(case.part("params/"), {**case.config, **changes})
    with pytest.raises(TypeError, match="config: expected a mapping"):
        SparseMixer.from_flax(case.part("params/"), "config.py")  # type: ignore[arg-type]


def test_folders_as_archives_and_flax_itself_make_them(tmp_path: Path) -> None:
    name = "ckpt_bert_replicated_only"
    config, _ = expected_of(name)
    expected = SparseMixer.from_flax(GOLDEN / name, config).get_weights()
    (step,) = (GOLDEN / name).glob("replicated_checkpoint_*")
    # An archive's folder beside another; Flax's own name for a step in one file.
    for target in ("released/sm/replicated_checkpoint_3", "plain/checkpoint_3"):
        path = tmp_path / target
        path.parent.mkdir(parents=True)
        (tmp_path / target.partition("/")[0] / "__MACOSX").mkdir()
        shutil.copy(step, path)
        for source in (tmp_path / target.partition("/")[0], path.parent, path):
            for ours, theirs in zip(SparseMixer.from_flax(source, config).get_weights(), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "released" / "sm" / "replicated_checkpoint_3").rename(tmp_path / "released" / "checkpoint_3")
    with pytest.raises(CheckpointError, match=r"several folders .*plain, .*released"):
        SparseMixer.from_flax(tmp_path, config)
    with zipfile.ZipFile(tmp_path / "sm.zip", "w") as archive:
        archive.write(step, f"sm/{step.name}")
    with pytest.raises(CheckpointError, match=r"not an \.npz archive; unpack it"):
        SparseMixer.from_flax(tmp_path / "sm.zip", config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint that is read"):
        SparseMixer.from_flax(tmp_path / "empty", config)


def msgpack(value: Any) -> bytes:
    """Nested mappings of text to arrays, as Flax writes them."""
    if isinstance(value, dict):
        entries = b"".join(b"\xdb" + struct.pack(">I", len(k)) + k.encode() + msgpack(v) for k, v in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + entries
    dtype, content = value.dtype.name.encode(), value.tobytes()
    shape = b"".join(b"\xce" + struct.pack(">I", size) for size in value.shape)
    payload = b"\x93" + bytes([0x90 + value.ndim]) + shape + b"\xd9" + bytes([len(dtype)]) + dtype
    payload += b"\xc6" + struct.pack(">I", len(content)) + content
    return b"\xc9" + struct.pack(">I", len(payload)) + b"\x01" + payload


def test_experts_of_several_hosts_and_devices(tmp_path: Path) -> None:
    """Two hosts of two devices, each with one of the four experts."""
    config, expected = expected_of("ckpt_linear_2_devices")
    params = {key: value for key, value in expected.items() if key.startswith("params/")}
    experts = {key: value for key, value in params.items() if "expert" in key}
    assert {value.shape[1] for value in experts.values()} == {4}
    empty = np.zeros(0, np.float64)
    replicated = {key: empty if key in experts else value for key, value in params.items()}
    (tmp_path / "replicated_checkpoint_7").write_bytes(msgpack(nested(replicated)))
    for host in (0, 1):
        shard = {
            key: np.stack([experts[key][:, 2 * host + device :][:, :1] for device in (0, 1)])
            if key in experts
            else empty
            for key in params
        }
        (tmp_path / f"shard-{host:05d}-of-00002_checkpoint_7").write_bytes(msgpack(nested(shard)))
    encoder = SparseMixer.from_flax(tmp_path, config)
    inputs = {"input_word_ids": expected["inputs/input_ids"], "input_type_ids": expected["inputs/type_ids"]}
    assert_close("sequence_output", encoder(inputs)["sequence_output"], expected["outputs/sequence_output"])
    merged = SparseMixer.from_flax(GOLDEN / "ckpt_linear_2_devices", config)
    for ours, theirs in zip(encoder.get_weights(), merged.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "shard-00000-of-00002_checkpoint_7").unlink()
    with pytest.raises(CheckpointError, match="all of its shard files"):
        SparseMixer.from_flax(tmp_path, config)


def test_incomplete_steps_are_refused(tmp_path: Path) -> None:
    name = "ckpt_linear_2_devices"
    config, _ = expected_of(name)
    shutil.copytree(GOLDEN / name, tmp_path / "step")
    (tmp_path / "step" / "shard-00000-of-00001_checkpoint_3").unlink()
    with pytest.raises(CheckpointError):
        SparseMixer.from_flax(tmp_path / "step", config)
    with pytest.raises(CheckpointError, match="another shape"):
        SparseMixer.from_flax(GOLDEN / name, {**config, "d_ff": 20})
