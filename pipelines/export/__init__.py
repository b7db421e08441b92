"""Stores to other formats."""
