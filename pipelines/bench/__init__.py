"""Benchmarks of ingest and verify: each measures the toolkit and a physical limit in one run on one machine."""
