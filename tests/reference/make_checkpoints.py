"""Write the small weight files of other frameworks that the readers are tested with.

Run from the repository root with TensorFlow and tf-models-official installed (see ``tests/requirements``)::

    python tests/reference/make_checkpoints.py

Everything goes to ``tests/golden/checkpoints``: one encoder saved by real TensorFlow in each of its formats, the larger
models that people save encoders in, and ``weights.npz`` with the same weights under their Keras names.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from official.nlp.modeling import layers, models, networks

FOLDER = Path(__file__).parents[1] / "golden" / "checkpoints"
CONFIG = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_layers": 3,
    "moe_layers": [1],
    "attention_layers": [2],
    "num_experts": 2,
    "num_attention_heads": 2,
    "max_sequence_length": 4,
    "type_vocab_size": 2,
    "inner_dim": 12,
    "embedding_width": 6,
}


def build_encoder() -> networks.SparseMixer:
    """An encoder with distinct random weights, biases and norms included."""
    encoder = networks.SparseMixer(**CONFIG)
    encoder(inputs(batch_size=2))
    random = np.random.default_rng(7)
    encoder.set_weights([random.normal(size=w.shape).astype(np.float32) * 0.5 for w in encoder.get_weights()])
    return encoder


def inputs(batch_size: int) -> dict[str, tf.Tensor]:
    """Word ids, mask and type ids of ``batch_size`` examples."""
    random = np.random.default_rng(3)
    shape = (batch_size, CONFIG["max_sequence_length"])
    return {
        "input_word_ids": tf.constant(random.integers(0, CONFIG["vocab_size"], shape), tf.int32),
        "input_mask": tf.ones(shape, tf.int32),
        "input_type_ids": tf.constant(random.integers(0, CONFIG["type_vocab_size"], shape), tf.int32),
    }


def functional_model(encoder: networks.SparseMixer) -> tf_keras.Model:
    """The model that Keras needs around a layer to save it."""
    return tf_keras.Model(encoder.inputs, encoder(encoder.inputs))


def pretrainer(encoder: networks.SparseMixer) -> models.BertPretrainerV2:
    """A pre-training model whose language-model head shares the word table."""
    head = layers.MaskedLM(embedding_table=encoder.get_embedding_table(), activation="gelu", name="cls/predictions")
    model = models.BertPretrainerV2(encoder_network=encoder, customized_masked_lm=head)
    model({**inputs(2), "masked_lm_positions": tf.zeros((2, 1), tf.int32)})
    return model


def main() -> None:
    """Write all files."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    encoder = build_encoder()
    batch = inputs(batch_size=2)
    outputs = encoder(batch)
    np.savez(
        FOLDER / "weights.npz",
        **{w.name.partition("/")[2].removesuffix(":0"): w.numpy() for w in encoder.weights},
    )
    np.savez(
        FOLDER / "outputs.npz",
        **{name: value.numpy() for name, value in batch.items()},
        sequence_output=outputs["sequence_output"].numpy(),
        pooled_output=outputs["pooled_output"].numpy(),
    )
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")

    model = functional_model(encoder)
    model.save_weights(str(FOLDER / "functional" / "ckpt"))
    model.save_weights(str(FOLDER / "encoder.weights.h5"))
    model.save_weights(str(FOLDER / "legacy.h5"))
    tf.train.Checkpoint(encoder=encoder).write(str(FOLDER / "encoder" / "ckpt"))
    pretraining = pretrainer(encoder)
    tf.train.Checkpoint(model=pretraining, **pretraining.checkpoint_items).write(str(FOLDER / "pretrainer" / "ckpt"))
    classifier = models.BertClassifier(encoder, num_classes=3)
    tf.train.Checkpoint(model=classifier).write(str(FOLDER / "classifier" / "ckpt"))
    tf.saved_model.save(model, str(FOLDER / "saved_model"))
    # Only the variables are read; the graph is large.
    (FOLDER / "saved_model" / "saved_model.pb").unlink()
    (FOLDER / "saved_model" / "fingerprint.pb").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
