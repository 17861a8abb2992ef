"""``python -m sparse_mixer.cli``."""

import sys

from sparse_mixer.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
