"""Threads beside the caller's work: at once, waited for, and not silent."""

from __future__ import annotations

from threading import Barrier, Event

import pytest

from kontext_fast.optimizations.acceleration import run_concurrently


def test_calls_run_concurrently_with_the_body() -> None:
    together = Barrier(3)
    with run_concurrently([lambda: None, *[lambda: together.wait(timeout=10)] * 2]):
        together.wait(timeout=10)


def test_first_call_has_ended_before_others_begin() -> None:
    begun, may_end = Event(), Event()
    ended: list[str] = []

    def first() -> None:
        begun.set()
        assert may_end.wait(timeout=10)
        ended.append("first")

    with run_concurrently([first, *[lambda: ended.append("another")] * 3]):
        assert begun.wait(timeout=10)
        assert not ended
        may_end.set()
    assert ended == ["first", *["another"] * 3]


def test_calls_have_ended_after_the_body() -> None:
    entered, done = Event(), []

    def call() -> None:
        assert entered.wait(timeout=10)
        done.append(True)

    with run_concurrently([call]):
        entered.set()
    assert done == [True]


def test_error_of_a_call_is_raised_after_the_body() -> None:
    reached = False
    with pytest.raises(ZeroDivisionError), run_concurrently([lambda: 1 / 0]):
        reached = True
    assert reached


def test_error_of_the_body_comes_first() -> None:
    with pytest.raises(KeyError), run_concurrently([lambda: 1 / 0]):
        raise KeyError


def test_no_calls_do_nothing() -> None:
    with run_concurrently(()):
        pass
