"""The record of what was run, and its store. Imports no torch."""
