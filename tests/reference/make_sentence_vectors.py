"""Write the vectors that `sentence-transformers` gives for the golden BERT.

Run from the repository root in an environment with ``sentence-transformers``, ``torch`` and ``pytest``::

    PYTHONPATH=python:tests python tests/reference/make_sentence_vectors.py

The result is ``tests/golden/sentence_vectors/vectors.npz``: the texts, and their vectors for each mode of pooling, with
a prompt, and as bits.
"""

import tempfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer, models
from test_text_encoder import LETTERS, folder_of

TARGET = Path(__file__).parents[1] / "golden" / "sentence_vectors" / "vectors.npz"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(7)
    texts = [" ".join(random.choice(list(LETTERS + "."), random.integers(1, 12))) for _ in range(20)]
    texts += ["", "ABC", "Lk x"]
    with tempfile.TemporaryDirectory() as folder:
        path = folder_of(Path(folder) / "model", normalize=False)
        model = SentenceTransformer(str(path), device="cpu")
        results = {"texts": np.array(texts)}
        for mode in MODES:
            model._modules["1"] = models.Pooling(16, pooling_mode=mode)
            results[mode] = model.encode(texts)
        model._modules["1"] = models.Pooling(16, pooling_mode="mean")
        results["normalized"] = model.encode(texts, normalize_embeddings=True)
        results["prompted"] = model.encode(texts, prompt="a b ")
        results["ubinary"] = model.encode(texts, precision="ubinary")
        model._modules["1"] = models.Pooling(16, pooling_mode="mean", include_prompt=False)
        model._modules["1"].include_prompt = False
        results["prompt_not_pooled"] = model.encode(texts, prompt="a b ")
    np.savez(TARGET, **results)


if __name__ == "__main__":
    main()
