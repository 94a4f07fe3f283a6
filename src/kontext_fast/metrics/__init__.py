"""Metrics of outputs, one per file, discovered by scanning this package, and what scores stored outputs with them."""
