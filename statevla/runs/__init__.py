"""Where a run keeps what: folders, checkpoint files, metrics."""
