"""Sentences that depend on the numbers, each worded once."""
