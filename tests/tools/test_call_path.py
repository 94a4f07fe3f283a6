"""How many modules a reader passes on the way to a kernel and through an edit."""

from __future__ import annotations

from tools.call_path import MOST_OF_AN_EDIT, MOST_TO_A_KERNEL, of_an_edit, to_a_kernel


def test_accelerate_reaches_a_kernel_in_few_modules() -> None:
    modules = to_a_kernel()
    assert len(modules) <= MOST_TO_A_KERNEL
    assert {"optimizations.acceleration", "optimizations.techniques.engine", "engine.transformer"} <= set(modules)


def test_an_edit_passes_few_modules() -> None:
    modules = of_an_edit()
    assert len(modules) <= MOST_OF_AN_EDIT
    assert {"cli.edit", "pipeline.edit", "pipeline.sizes", "pipeline.png"} <= set(modules)
