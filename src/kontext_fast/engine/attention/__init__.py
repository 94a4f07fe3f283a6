"""Attention over joint buffers: one file per kernel, or family of kernels, discovered by `engine.dispatch`.

A kernel is named by the user, never found by trial.
"""
