"""Solvers fitted to a user's own weights: search, fit and the proof on edits that the fit never saw."""
