"""`python -m benchmarks bert`: TensorFlow's encoder has the weights of transformers' folder, each in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow_reference as reference
from safetensors.numpy import load_file, save_file

from benchmarks.bert_load import Bert, tensorflow_bert

GOLDEN = Path(__file__).parent / "golden" / "checkpoints" / "hf_bert"
SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_layers": 2,
    "attention_layers": (0, 1),
    "moe_layers": (),
    "num_attention_heads": 2,
    "max_sequence_length": 8,
    "type_vocab_size": 2,
    "inner_dim": 24,
}


def test_it_gives_the_outputs_of_transformers(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "model.safetensors")
    own = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")}
    save_file(own, tmp_path / "model.safetensors")
    expected = np.load(GOLDEN / "outputs.npz")
    inputs = {name: expected[name].astype(np.int32) for name in ("input_word_ids", "input_mask", "input_type_ids")}
    with reference._quiet():
        outputs = tensorflow_bert(Bert(**SIZES, model=tmp_path))(inputs, training=False)
    np.testing.assert_allclose(outputs["sequence_output"], expected["hidden_states"][-1], atol=2e-5)
    np.testing.assert_allclose(outputs["pooled_output"], expected["pooled_output"], atol=2e-5)
    del own["encoder.layer.1.output.dense.bias"]
    save_file(own, tmp_path / "model.safetensors")
    with reference._quiet(), pytest.raises(KeyError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        tensorflow_bert(Bert(**SIZES, model=tmp_path))
