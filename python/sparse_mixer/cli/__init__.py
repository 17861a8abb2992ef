"""The command ``sparse-mixer``."""

from sparse_mixer.cli.command import EXIT_OK, EXIT_PROBLEM, EXIT_USAGE, main

__all__ = ["EXIT_OK", "EXIT_PROBLEM", "EXIT_USAGE", "main"]
