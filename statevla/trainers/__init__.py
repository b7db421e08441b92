"""Training: one loop (`loop.train`), two losses (`phase1`, `phase2`). Never imports evaluators."""
