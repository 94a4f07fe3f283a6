"""Where whatever changes the steps of a pipeline says what each step of the last edit was.

An edit has to report its step kinds, but the code that decides them (a cache, a schedule) lives above this package.
So that code registers a reporter here, and `edit` asks it. A pipeline without a reporter computes every step in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from kontext_fast.records.schema import StepKind

Reporter = Callable[[], Sequence[Sequence[StepKind]]]
"""Per step of the last edit the kind of each sample of its batch, or one kind for all of them."""

_IN_FULL: StepKind = "refresh"
_BY_WORK: tuple[StepKind, ...] = ("skipped", "reuse", _IN_FULL)

_reporters: WeakKeyDictionary[Any, Reporter] = WeakKeyDictionary()


def report_step_kinds(pipe: Any, reporter: Reporter) -> None:
    """Let `reporter()` answer for `pipe`: the kinds of the denoising steps of its last edit, in order.

    The reporter must not hold a reference to `pipe`, or the pipeline is never freed.
    Raises RuntimeError if another reporter already answers for it: two of them cannot both be right.
    """
    if pipe in _reporters:
        raise RuntimeError("this pipeline already has a reporter of step kinds; call forget_step_kinds first")
    _reporters[pipe] = reporter


def forget_step_kinds(pipe: Any) -> None:
    """Take the reporter of `pipe` away; does nothing where there is none."""
    _reporters.pop(pipe, None)


def hardest(kinds: Iterable[StepKind]) -> StepKind:
    """The kind that ran most of the transformer; refresh where nobody said anything."""
    return max(kinds, key=_BY_WORK.index, default=_IN_FULL)


def step_kinds(pipe: Any, steps: int, samples: slice = slice(None)) -> tuple[StepKind, ...]:
    """Kinds of the last edit's `steps` steps: of each the hardest-working one of `samples`, a part of the batch.

    Raises RuntimeError if the reporter counted another number of steps: its answer would describe another edit.
    """
    reporter = _reporters.get(pipe)
    if reporter is None:
        return (_IN_FULL,) * steps
    kinds = reporter()
    if len(kinds) != steps:
        raise RuntimeError(f"the last edit ran {steps} steps, but its optimization reported {len(kinds)}")
    return tuple(hardest(of_step if len(of_step) == 1 else of_step[samples]) for of_step in kinds)
