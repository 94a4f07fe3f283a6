"""Optimizations: techniques that are applied to a pipeline and reverted from it, and the plans that combine them."""
