"""The one record of what was run, and its store. Knows nothing of torch."""
