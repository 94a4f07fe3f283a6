"""Passages of README and guides that are rendered from records: one file each, found by a scan of this package."""
