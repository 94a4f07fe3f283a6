from __future__ import annotations

import gc
import weakref

import pytest

from kontext_fast.pipeline.step_kinds import forget_step_kinds, report_step_kinds, step_kinds


class Pipe:
    pass


def test_every_step_is_a_refresh_where_nothing_says_otherwise() -> None:
    assert step_kinds(Pipe(), 3) == ("refresh",) * 3


def test_the_reporter_answers_until_it_is_forgotten() -> None:
    pipe, other = Pipe(), Pipe()
    report_step_kinds(pipe, lambda: (("refresh",), ("skipped",)))
    assert step_kinds(pipe, 2) == ("refresh", "skipped")
    assert step_kinds(other, 2) == ("refresh", "refresh")
    with pytest.raises(RuntimeError, match="already"):
        report_step_kinds(pipe, lambda: ())
    forget_step_kinds(pipe)
    forget_step_kinds(pipe)
    assert step_kinds(pipe, 2) == ("refresh", "refresh")


def test_a_part_of_the_batch_is_what_its_hardest_working_sample_was() -> None:
    pipe = Pipe()
    report_step_kinds(pipe, lambda: (("refresh",), ("skipped", "skipped", "reuse"), ("skipped", "refresh", "skipped")))
    assert step_kinds(pipe, 3) == ("refresh", "reuse", "refresh")
    assert step_kinds(pipe, 3, slice(0, 1)) == ("refresh", "skipped", "skipped")
    assert step_kinds(pipe, 3, slice(1, 3)) == ("refresh", "reuse", "refresh")


def test_an_answer_about_another_edit_is_not_believed() -> None:
    pipe = Pipe()
    report_step_kinds(pipe, lambda: (("refresh",),))
    with pytest.raises(RuntimeError, match="2 steps"):
        step_kinds(pipe, 2)


def test_a_pipeline_is_freed_with_its_reporter() -> None:
    pipe = Pipe()
    gone = weakref.ref(pipe)
    report_step_kinds(pipe, lambda: ())
    del pipe
    gc.collect()
    assert gone() is None
