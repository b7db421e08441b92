"""Worlds to close the loop in: ``tabletop`` (a toy, needs nothing) and ``libero`` (the real simulator)."""
