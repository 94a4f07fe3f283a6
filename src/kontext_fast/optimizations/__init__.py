"""Optimizations: techniques that are applied to a pipeline and reverted from it, and the plans that combine them."""

from typing import Final

DEFAULT_PRESET: Final = "faithful"
"""Wherever no preset is named: nothing lossy unasked, nothing slow by default. Here, since every --help imports it."""
