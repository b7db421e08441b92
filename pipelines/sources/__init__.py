"""Formats of demonstrations and the conventions that their files show."""
