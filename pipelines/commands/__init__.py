"""The commands of `statevla`, a module for each group. `cli.py` puts them together."""
