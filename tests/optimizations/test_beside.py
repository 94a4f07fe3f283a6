"""Threads beside the caller's work: at once, waited for, and not silent."""

from __future__ import annotations

from threading import Barrier, Event

import pytest

from kontext_fast.optimizations.acceleration import run_concurrently


def test_calls_run_at_once_and_beside_the_body() -> None:
    together = Barrier(3)
    with run_concurrently([lambda: together.wait(timeout=10)] * 2):
        together.wait(timeout=10)


def test_they_have_ended_when_the_body_has() -> None:
    entered, done = Event(), []

    def call() -> None:
        assert entered.wait(timeout=10)
        done.append(True)

    with run_concurrently([call]):
        entered.set()
    assert done == [True]


def test_what_one_raises_is_raised_after_the_body() -> None:
    reached = False
    with pytest.raises(ZeroDivisionError), run_concurrently([lambda: 1 / 0]):
        reached = True
    assert reached


def test_what_the_body_raises_comes_first() -> None:
    with pytest.raises(KeyError), run_concurrently([lambda: 1 / 0]):
        raise KeyError


def test_without_calls_nothing_happens() -> None:
    with run_concurrently(()):
        pass
