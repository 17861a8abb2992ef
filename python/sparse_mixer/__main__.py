"""``python -m sparse_mixer``: the command ``sparse-mixer``."""

import sys

from sparse_mixer.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
