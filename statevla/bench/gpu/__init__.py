"""Every GPU figure of the project: `python -m statevla.bench.gpu --report FILE`. See `__main__` for what it does."""
