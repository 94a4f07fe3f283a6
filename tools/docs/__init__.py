"""Builder of this repository's documents: README, docs, charts and reports, from the records in `results/`."""
