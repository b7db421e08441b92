"""Benchmarks: each measures the toolkit, a physical limit and stock peers in one run on one machine."""
