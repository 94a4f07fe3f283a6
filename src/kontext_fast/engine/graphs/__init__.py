"""Repeats calls on a device without their Python code: CUDA graphs, and lists of operations."""
