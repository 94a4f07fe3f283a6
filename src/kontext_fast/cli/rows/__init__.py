"""Edits of the rows of a manifest or a folder, with facts of each: what `kontext edit` does for many."""
