"""State encoders and policies that can be trained: one file and one row of `SYSTEMS` each."""

from statevla.systems.table import SYSTEMS, config_of, find_system

__all__ = ["SYSTEMS", "config_of", "find_system"]
