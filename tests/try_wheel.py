"""What a user does first with an installed wheel: import, encode, train a step, save, load, run the command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

start = time.perf_counter()
import sparse_mixer  # noqa: E402

imported = time.perf_counter() - start

ids = np.zeros((2, 16), np.int32)
inputs = {"input_word_ids": ids, "input_mask": np.ones_like(ids), "input_type_ids": ids}
encoder = sparse_mixer.SparseMixer(100, hidden_size=32, num_layers=6, inner_dim=64, max_sequence_length=16, seed=0)
pooled = encoder(inputs)["pooled_output"]
assert pooled.shape == (2, 32), pooled.shape
_, vjp = encoder.vjp(inputs)
assert np.isfinite(vjp({"pooled_output": pooled})["word_embeddings/embeddings"]).all()
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "encoder.safetensors"
    encoder.save(path)
    np.testing.assert_array_equal(sparse_mixer.SparseMixer.load(path)(inputs)["pooled_output"], pooled)
    command = [sys.executable, "-m", "sparse_mixer", "verify", str(path)]
    assert "0 problems" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
info = sparse_mixer.cpu_info()
print(f"sparse_mixer {sparse_mixer.__version__} works; imported in {imported:.2f} s over numpy; {info['isa']}")
