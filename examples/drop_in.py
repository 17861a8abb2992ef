"""Replace TensorFlow Model Garden's encoder by this one and see that the numbers stay.

Needs the reference: pip install tensorflow-cpu tf-keras tf-models-official. A small model, so that it runs in seconds.
"""

from __future__ import annotations

import os

import numpy as np
import sparse_mixer

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

ARGUMENTS = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_layers": 6,
    "moe_layers": (1, 3),
    "attention_layers": (4, 5),
    "num_experts": 4,
    "num_attention_heads": 4,
    "max_sequence_length": 32,
    "inner_dim": 128,
}


def main() -> None:
    """Build both encoders, copy the weights, compare every output and the auxiliary losses."""
    from official.nlp.modeling import networks  # also reachable as tensorflow_models.nlp.networks

    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1000, (4, 32), dtype=np.int32)
    inputs = {"input_word_ids": ids, "input_mask": np.ones_like(ids), "input_type_ids": np.zeros_like(ids)}

    theirs = networks.SparseMixer(**ARGUMENTS)
    wanted = theirs(inputs)

    ours = sparse_mixer.networks.SparseMixer(**ARGUMENTS)
    ours.set_weights(theirs.get_weights())
    got = ours(inputs)

    for name in ("sequence_output", "pooled_output"):
        print(f"{name}: largest difference {np.abs(got[name] - wanted[name].numpy()).max():.1e}")
    for index, (a, b) in enumerate(zip(got["encoder_outputs"], wanted["encoder_outputs"], strict=True)):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=2e-5, err_msg=f"layer {index}")
    np.testing.assert_allclose(ours.losses, [loss.numpy() for loss in theirs.losses], atol=1e-6)
    for a, b in zip(ours.metrics, theirs.metrics, strict=True):
        assert a.name == b.name
        np.testing.assert_allclose(a.result(), b.result().numpy(), atol=1e-6, err_msg=a.name)
    print(f"{len(got['encoder_outputs'])} layers, {len(ours.losses)} losses and {len(ours.metrics)} metrics agree")


if __name__ == "__main__":
    main()
