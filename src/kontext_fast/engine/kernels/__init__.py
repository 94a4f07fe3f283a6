"""Fused kernels behind the interface of `kontext_fast.engine.ops.Ops`, one per file.

`kontext_fast.engine.kernels.fused` puts them together; importing it needs Triton.
"""
