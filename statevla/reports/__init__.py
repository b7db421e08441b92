"""Pages, charts and films from plain rows and pictures; knows no evaluator."""
