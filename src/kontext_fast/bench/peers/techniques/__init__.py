"""The techniques that recipes consist of, one per file."""
