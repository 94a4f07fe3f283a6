"""Where whatever changes the steps of a pipeline says what each step of the last edit was.

An edit has to report its step kinds, but the code that decides them (a cache, a schedule) lives above this package.
So that code registers a reporter here, and `edit` asks it. A pipeline without a reporter computes every step in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from kontext_fast.records.schema import StepKind

Reporter = Callable[[], Sequence[StepKind]]

_reporters: WeakKeyDictionary[Any, Reporter] = WeakKeyDictionary()


def report_step_kinds(pipe: Any, reporter: Reporter) -> None:
    """Let `reporter()` answer for `pipe`: one kind per denoising step of its last edit, in order.

    The reporter must not hold a reference to `pipe`, or the pipeline is never freed.
    Raises RuntimeError if another reporter already answers for it: two of them cannot both be right.
    """
    if pipe in _reporters:
        raise RuntimeError("this pipeline already has a reporter of step kinds; call forget_step_kinds first")
    _reporters[pipe] = reporter


def forget_step_kinds(pipe: Any) -> None:
    """Take the reporter of `pipe` away; does nothing where there is none."""
    _reporters.pop(pipe, None)


def step_kinds(pipe: Any, steps: int) -> tuple[StepKind, ...]:
    """Kinds of the last edit's `steps` steps.

    Raises RuntimeError if the reporter counted another number of steps: its answer would describe another edit.
    """
    reporter = _reporters.get(pipe)
    refresh: StepKind = "refresh"
    kinds = reporter() if reporter else (refresh,) * steps
    if len(kinds) != steps:
        raise RuntimeError(f"the last edit ran {steps} steps, but its optimization reported {len(kinds)}")
    return tuple(kinds)
