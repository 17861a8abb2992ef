"""Write a small BERT and FNet with the `transformers` package, and their hidden states.

Run from the repository root in an environment with ``transformers`` and ``torch``::

    python tests/reference/make_hugging_face.py

The result is ``tests/golden/checkpoints/hf_bert`` and ``hf_fnet``: ``config.json``, ``model.safetensors`` (as
``save_pretrained`` writes them) and ``outputs.npz``.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parents[1] / "golden" / "checkpoints"
SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
    "type_vocab_size": 2,
}


def write(target: Path, seed: int) -> None:
    """Write both models, with weights and inputs from `seed`, into folders of `target`."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    ids = random.integers(0, SIZES["vocab_size"], (3, 8))
    types = random.integers(0, 2, (3, 8))
    mask = np.ones((3, 8), np.int64)
    mask[1, 5:] = 0
    models = {
        "hf_bert": transformers.BertForPreTraining(transformers.BertConfig(**SIZES, num_attention_heads=2)),
        "hf_fnet": transformers.FNetForPreTraining(transformers.FNetConfig(**SIZES)),
    }
    for name, model in models.items():
        model.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Distinct biases and norms, and numbers large enough to tell the layers apart.
                parameter.add_(0.2 * torch.randn_like(parameter))
            inner = model.bert if name == "hf_bert" else model.fnet
            keywords = {"attention_mask": torch.tensor(mask)} if name == "hf_bert" else {}
            outputs = inner(
                torch.tensor(ids), token_type_ids=torch.tensor(types), output_hidden_states=True, **keywords
            )
        model.save_pretrained(target / name, safe_serialization=True)
        np.savez(
            target / name / "outputs.npz",
            input_word_ids=ids.astype(np.int32),
            input_type_ids=types.astype(np.int32),
            input_mask=mask.astype(np.int32),
            hidden_states=torch.stack(outputs.hidden_states).numpy(),
            pooled_output=outputs.pooler_output.numpy(),
        )


if __name__ == "__main__":
    write(FOLDER, seed=5)
