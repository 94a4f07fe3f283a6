from __future__ import annotations

import pytest

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.rows import ComputedSteps
from kontext_fast.records.schema import Memory
from kontext_fast.stats.intervals import Estimate, mean_estimate, summarize


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measured"),
        (0.0, "0 ms"),
        (0.0123456, "12.3 ms"),
        (0.000123, "0.123 ms"),
        (0.123456, "0.123 s"),
        (1.23456, "1.23 s"),
        (123.456, "123 s"),
        (1513.2, "1,513 s"),
    ],
)
def test_seconds_have_three_digits(value: float | None, text: str) -> None:
    assert fmt.seconds(value) == text


@pytest.mark.parametrize(
    ("estimate", "value", "interval"),
    [
        (Estimate(1.10823, (1.03512, 1.18049), 3), "1.108 s", "1.035 to 1.180 s"),
        (Estimate(1.10823, (0.95, 1.27), 3), "1.11 s", "0.95 to 1.27 s"),
        (Estimate(1.10823, (1.108229, 1.108231), 3), "1.1082 s", "1.1082 to 1.1082 s"),
        (Estimate(1.10823, (1.10823, 1.10823), 3), "1.11 s", "1.11 to 1.11 s"),
        (Estimate(0.05, (0.038, 0.062), 3), "50 ms", "38 to 62 ms"),
        (Estimate(3.5, (-2.9, 9.9), 2), "3.5 s", "0.0 to 9.9 s"),
        (Estimate(2.0, None, 1), "2.00 s", None),
    ],
)
def test_seconds_estimate_has_digits_of_its_interval(estimate: Estimate, value: str, interval: str | None) -> None:
    assert fmt.seconds_estimate(estimate) == value
    assert fmt.seconds_range(estimate) == interval


def test_factors() -> None:
    assert fmt.factor(Estimate(1.618, (1.55, 1.70), 5)) == "1.62x"
    assert fmt.factor_range(Estimate(1.618, (1.55, 1.70), 5)) == "1.55x to 1.70x"
    assert fmt.factor(Estimate(1.0041, (1.0011, 1.0071), 5)) == "1.004x"
    assert fmt.factor(Estimate(12.34, None, 1)) == "12.3x"
    assert fmt.factor_range(Estimate(12.34, None, 1)) is None
    assert fmt.factor_range_short(Estimate(1.618, (1.55, 1.70), 5)) == "1.55-1.70"
    assert fmt.factor_range_short(Estimate(2.21, (0.00002, 254029.3), 3)) is None
    assert fmt.factor_range_short(Estimate(1.27, None, 2)) is None


def test_two_runs_are_printed_as_they_are() -> None:
    assert fmt.seconds_of_runs(summarize([0.49, 0.57])) == "2 runs: 0.490, 0.570 s"
    assert fmt.seconds_of_runs(summarize([1.0, 1.1, 1.2])) == fmt.seconds_estimate(mean_estimate([1.0, 1.1, 1.2]))
    assert fmt.seconds_of_runs(summarize([1.0])) == "1.00 s"
    assert fmt.seconds_of_runs_with_interval(summarize([0.049, 0.057])) == "2 runs: 49.0 ms, 57.0 ms"
    assert fmt.seconds_of_runs_with_interval(summarize([1.0])) == "1.00 s (no interval)"
    assert fmt.seconds_range_of_runs(summarize([0.49, 0.57])) == "2 runs: 0.490, 0.570 s"
    assert fmt.seconds_range_of_runs(summarize([1.0])) is None


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0, "0 %"), (1.0, "100 %"), (0.996, "99.6 %"), (0.004, "0.4 %"), (0.93, "93 %")]
)
def test_percent_never_rounds_to_all_or_nothing(fraction: float, text: str) -> None:
    assert fmt.percent(fraction) == text


def test_peak_memory_is_in_gib_with_its_kind() -> None:
    assert fmt.gib(2**30) == "1.00 GiB"
    assert fmt.gib(36 * 2**30) == "36.0 GiB"
    assert fmt.gib(None) == "not measured"
    both = Memory(allocated_peak_bytes=2**31, host_rss_peak_bytes=2**30)
    assert (fmt.peak_memory(both), fmt.peak_memory_kind(both)) == ("2.00 GiB", "GPU, allocated by torch")
    whole = Memory(allocated_peak_bytes=25 * 2**30, device_process_peak_bytes=36 * 2**30, host_rss_peak_bytes=2**30)
    assert (fmt.peak_memory(whole), fmt.peak_memory_kind(whole)) == ("36.0 GiB", "GPU, whole process")
    assert fmt.peak_memory_detail(whole) == "GPU, whole process, 25.0 GiB of it allocated by torch"
    assert (fmt.peak_memory(Memory()), fmt.peak_memory_kind(Memory())) == ("not measured", None)


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (Memory(device_process_peak_bytes=36 * 2**30, allocated_peak_bytes=23 * 2**30), "fits a 40 GB card"),
        (Memory(device_process_peak_bytes=22 * 2**30), "fits a 24 GB card"),
        (Memory(allocated_peak_bytes=200 * 2**30), "fits no single card"),
        (Memory(host_rss_peak_bytes=2**30), None),
        (Memory(), None),
    ],
)
def test_smallest_card_is_decided_by_the_whole_process(memory: Memory, words: str | None) -> None:
    assert fmt.smallest_card(memory) == words


def test_computed_steps_show_differing_calls() -> None:
    same, differing = ComputedSteps(28, 28.0, 28, 28), ComputedSteps(12, 14.24, 16, 28)
    assert (fmt.computed_steps(same), fmt.computed_steps_range(same)) == ("28 of 28", None)
    assert fmt.computed_steps(differing) == "14.2 of 28"
    assert fmt.computed_steps_range(differing) == "12 to 16 in a call"


def test_dates_and_counts() -> None:
    assert fmt.date("2001-02-03T04:05:06Z") == "2001-02-03"
    assert fmt.date("yesterday") == "yesterday"
    assert fmt.count(1, "process", "processes") == "1 process"
    assert fmt.count(2, "item") == "2 items"
    assert fmt.parameters(11_900_000_000) == "11.9 B"
