"""The version: here, so that what needs it imports nothing else."""

from typing import Final

__version__: Final = "0.1.0"
