"""Script: load a weight file where no framework can be imported, from the first line on, and store what it gives.

::

    python tests/load_without_frameworks.py FILE CONFIG.json INPUTS.npz OUTPUTS.npz
"""

import sys

FRAMEWORKS = {"tensorflow", "tf_keras", "keras", "jax", "jaxlib", "flax", "torch", "transformers", "official"}


class Blocker:
    """A finder that comes before all others."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FRAMEWORKS:
            raise ImportError(f"{name} is not to be imported here")


assert not FRAMEWORKS & set(sys.modules)
sys.meta_path.insert(0, Blocker())

import contextlib  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import sparse_mixer  # noqa: E402


def main() -> None:
    """Run the script."""
    with contextlib.suppress(ImportError):
        import tensorflow

        raise AssertionError(f"{tensorflow} was imported")
    path, config, inputs, target = sys.argv[1:]
    encoder = sparse_mixer.SparseMixer(**json.loads(Path(config).read_text()))
    report = encoder.load_weights(path)
    outputs = encoder(dict(np.load(inputs)))
    weights = {f"weight/{number}": array for number, array in enumerate(encoder.get_weights())}
    np.savez(
        target,
        **weights,
        complete=report.complete,
        prefix=report.prefix,
        sequence_output=outputs["sequence_output"],
        pooled_output=outputs["pooled_output"],
    )


if __name__ == "__main__":
    main()
