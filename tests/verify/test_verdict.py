"""Every level of verdict from synthetic distances and scores, and whole simulated verifications."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kontext_fast.stats.intervals import wilson
from kontext_fast.verify.comparisons import (
    ByItem,
    FidelityDistances,
    MarginComparison,
    Outcome,
    QualityDifferences,
    SeedNoiseComparison,
)
from kontext_fast.verify.findings import Repeat
from kontext_fast.verify.margins import Margins, read_margins
from kontext_fast.verify.verdict import Evidence, Level, _doubt_sentence, decide

MARGINS = read_margins()


def _items(values: Sequence[float]) -> ByItem:
    return {f"item {index:03d}": (float(value),) for index, value in enumerate(values)}


def _around(middle: float, n: int, seed: int = 0) -> ByItem:
    return _items(middle * np.random.default_rng(seed).lognormal(0, 0.2, n))


def _distances(
    to_baseline: float, *, n: int = 100, metric: str = "latent_error", **changes: ByItem
) -> FidelityDistances:
    """The floor is 0.01 and two seeds are 0.4 apart."""
    floors = {"re-run": _items([0.0] * 16), "other precision": _around(0.01, 16, seed=1)}
    return replace(
        FidelityDistances(metric, _around(to_baseline, n), floors, between_seeds=_around(0.4, n, seed=2)),
        **changes,  # type: ignore[arg-type]
    )


def _answers(change: float, n: int = 100, metric: str = "judge_done") -> QualityDifferences:
    """Yes-or-no scores: 6 % of the items change for better or worse, and `change` of all lose."""
    values = np.zeros(n)
    changing = max(2, int(0.06 * n))
    values[:changing] = np.where(np.arange(changing) % 2, 1.0, -1.0)
    lost = round(-change * n)
    values[changing : changing + lost] = -1.0
    return QualityDifferences(metric, _items(values), bounded=True)


def _evidence(fidelity: FidelityDistances, *quality: QualityDifferences, **changes: object) -> Evidence:
    return replace(Evidence(False, (fidelity,), quality), **changes)  # type: ignore[arg-type]


def _level(evidence: Evidence, margins: Margins = MARGINS) -> Level:
    return decide(evidence, margins).level


def test_equal_outputs_are_identical_for_insensitive_metrics() -> None:
    equal = _evidence(_distances(0.0), identical=True)
    assert _level(equal) is Level.IDENTICAL
    assert [comparison.metric for comparison in decide(equal, MARGINS).floor] == ["latent_error"]
    assert _level(replace(equal, insensitive={"latent_error": "it missed blur"})) is Level.IDENTICAL


def test_outputs_within_rounding_are_equivalent() -> None:
    verdict = decide(_evidence(_distances(0.009)), MARGINS)
    assert verdict.level is Level.EQUIVALENT
    assert "other precision" in verdict.reason
    assert verdict.floor[0].ratio.upper < MARGINS.floor.ratio


@pytest.mark.parametrize(
    "fidelity",
    [
        pytest.param(_distances(0.03), id="three times the floor"),
        pytest.param(replace(_distances(0.009), to_baseline=_items([0.009] * 99 + [0.9])), id="one item far off"),
        pytest.param(_distances(0.009, floors={}), id="no floor"),
        pytest.param(_distances(0.009, floors={"re-run": _items([0.0] * 16)}), id="a floor of zero"),
    ],
)
def test_outputs_beyond_rounding_are_not_equivalent(fidelity: FidelityDistances) -> None:
    assert _level(_evidence(fidelity)) is Level.NOT_MEASURED


def test_floor_is_named_only_where_there_is_one() -> None:
    without, far = (decide(_evidence(_distances(0.03, **floors)), MARGINS) for floors in ({"floors": {}}, {}))
    assert without.reason == "Quality is not measured: no primary metric was measured."
    assert far.reason.startswith(f"{without.reason} The distance to baseline is ")


def test_too_few_items_near_the_floor_cannot_tell() -> None:
    verdict = decide(_evidence(_distances(0.009, n=4)), MARGINS)
    assert verdict.level is Level.CANNOT_TELL
    assert "8 items are needed, 4 were used; and no primary metric was measured" in verdict.reason


def test_one_metric_beyond_the_floor_prevents_equivalence() -> None:
    near, far = _distances(0.009), _distances(0.05, metric="ssim")
    assert _level(Evidence(False, (near, far), ())) is Level.NOT_MEASURED
    assert _level(Evidence(False, (near, far), (), insensitive={"ssim": "it missed blur"})) is Level.EQUIVALENT


def test_no_loss_within_seed_noise_is_non_inferior() -> None:
    evidence = _evidence(_distances(0.1, n=200), _answers(0.0, 200), _answers(0.0, 200, "judge_kept"))
    assert _level(evidence) is Level.NON_INFERIOR


def test_small_significant_loss_is_reported() -> None:
    lost = np.where(np.arange(200) % 20 == 0, -0.3, 0.0)
    clip = QualityDifferences("clip_text", _items(lost), bounded=False)
    verdict = decide(_evidence(_distances(0.1, n=200), _answers(0.0, 200), clip), MARGINS)
    assert verdict.level is Level.NON_INFERIOR
    assert verdict.reason == (
        "No loss beyond the margins of judge_done, clip_text. "
        "A loss within the margin was measured in clip_text: 0.015, at most 0.0227, with a margin of 0.5."
    )


def test_loss_is_reported_with_its_size() -> None:
    verdict = decide(_evidence(_distances(0.1), _answers(-0.2), _answers(0.0, metric="judge_kept")), MARGINS)
    assert verdict.level is Level.LOSS
    assert re.match(r"The loss in judge_done is 0\.2 \(at least 0\.1\d*, at most 0\.2\d*, with a", verdict.reason)
    assert "margin of 0.05" in verdict.reason
    assert "judge_kept" not in verdict.reason


def test_item_that_amplifies_rounding_allows_equivalence() -> None:
    """One item is fifty times as far as the 15 others, in the floor and in the preset."""
    floor, preset = (np.array([0.5, *np.random.default_rng(seed).uniform(0.008, 0.012, 99)]) for seed in (1, 2))
    fidelity = replace(_distances(0.0), to_baseline=_items(preset), floors={"other precision": _items(floor[:16])})
    assert _level(_evidence(fidelity)) is Level.EQUIVALENT
    twice = replace(fidelity, to_baseline=_items(2 * preset))
    assert _level(_evidence(twice)) is Level.NOT_MEASURED
    # All the others three times as far: the mean hardly notices.
    others = replace(fidelity, to_baseline=_items([0.25, *(3 * preset[1:])]))
    assert _level(_evidence(others)) is Level.NOT_MEASURED


def test_each_item_is_compared_with_its_own_seed_noise() -> None:
    """Half of the edits have one answer and hardly any noise, half are open."""
    noise = np.tile([0.04, 0.6], 100)
    answers = (_answers(0.0, 200), _answers(0.0, 200, "judge_kept"))
    for share, level in ((0.3, Level.NON_INFERIOR), (0.7, Level.LOSS)):
        fidelity = replace(_distances(0.0), between_seeds=_items(noise), to_baseline=_items(share * noise))
        assert _level(_evidence(fidelity, *answers)) is level
    # As far as 0.3 of what is usual: for half of the items more than another seed.
    everywhere = replace(fidelity, to_baseline=_items(np.full(200, 0.3 * noise.mean())))
    assert _level(_evidence(everywhere, *answers)) is Level.LOSS


def test_seed_noise_within_rounding_decides_nothing() -> None:
    answers = (_answers(0.0, 200), _answers(0.0, 200, "judge_kept"))
    within_rounding = _distances(0.3, n=200, metric="ssim", floors={"other precision": _around(0.25, 16, seed=1)})
    sensitive = _distances(0.1, n=200)
    verdict = decide(Evidence(False, (sensitive, within_rounding), answers), MARGINS)
    assert verdict.level is Level.NON_INFERIOR
    assert "seed noise, whose limit rounding alone may exceed: ssim" in verdict.reason
    far = _distances(0.5, n=200, metric="ssim", floors={"other precision": _around(0.25, 16, seed=1)})
    alone = decide(Evidence(False, (far,), answers), MARGINS)
    assert alone.level is Level.CANNOT_TELL
    assert "ounding alone may exceed the seed-noise limit in ssim" in alone.reason


def test_outputs_as_far_as_another_seed_are_a_loss() -> None:
    verdict = decide(_evidence(_distances(0.4), _answers(0.0, 100)), MARGINS)
    assert verdict.level is Level.LOSS
    assert "seed noise" in verdict.reason


@pytest.mark.parametrize("n", [12, 60])
def test_too_few_items_for_the_margin_cannot_tell(n: int) -> None:
    verdict = decide(_evidence(_distances(0.1, n=n), _answers(0.0, n)), MARGINS)
    assert verdict.level is Level.CANNOT_TELL
    (comparison,) = verdict.losses
    assert comparison.outcome is Outcome.UNDECIDED
    assert f"about {comparison.needed} items are needed, {n} were used" in verdict.reason
    assert comparison.needed > n


def test_quality_without_a_sensitive_metric_is_not_measured() -> None:
    insensitive = {"judge_done": "it missed unedited input"}
    verdict = decide(_evidence(_distances(0.1), _answers(0.0, 200), insensitive=insensitive), MARGINS)
    assert verdict.level is Level.NOT_MEASURED
    assert "insensitive here (judge_done)" in verdict.reason
    assert _level(_evidence(_distances(0.1))) is Level.NOT_MEASURED
    not_primary = _evidence(_distances(0.1), _answers(0.0, 200, metric="something else"))
    assert _level(not_primary) is Level.NOT_MEASURED


def test_verdict_rests_on_sensitive_metrics() -> None:
    insensitive = {"judge_kept": "it missed swapped instructions"}
    evidence = _evidence(
        _distances(0.1, n=200), _answers(0.0, 200), _answers(-0.5, 200, "judge_kept"), insensitive=insensitive
    )
    verdict = decide(evidence, MARGINS)
    assert verdict.level is Level.NON_INFERIOR
    assert verdict.reason.endswith("Insensitive here and left out: judge_kept.")


def test_without_seed_noise_nothing_is_non_inferior() -> None:
    evidence = _evidence(_distances(0.1, n=200, between_seeds={}), _answers(0.0, 200))
    verdict = decide(evidence, MARGINS)
    assert verdict.level is Level.CANNOT_TELL
    assert "eed noise was not measured" in verdict.reason


def test_failure_where_baseline_succeeded_is_a_loss() -> None:
    verdict = decide(_evidence(_distances(0.0), identical=True, failures=("item 7",)), MARGINS)
    assert verdict.level is Level.LOSS
    assert "item 7" in verdict.reason


def _in_another_order(*values: float, **changes: ByItem) -> str | None:
    """Why a preset whose outputs differ so much in another order is a loss; None where it is none."""
    evidence = _evidence(_distances(0.1, n=200, reordered=_items(values), **changes), _answers(0.0, 200))
    verdict = decide(evidence, MARGINS)
    return verdict.reason if verdict.level is Level.LOSS else None


def test_dependence_on_other_requests_is_a_loss() -> None:
    said = _in_another_order(*[0.0] * 15, 0.5)
    assert said is not None
    assert re.fullmatch(
        r"Its outputs depend on other requests: in another order latent_error differs by \d\d\.\d\d times the floor\.",
        said,
    )
    assert float(re.findall(r"[\d.]+", said)[0]) == pytest.approx(50, rel=0.5)
    # All are a little farther than rounding takes them: by a bound, although none is far.
    assert "by 2." in (_in_another_order(*(2.4 * value[0] for value in _around(0.01, 16, seed=1).values())) or "")
    assert _in_another_order(*[0.005] * 16) is None
    assert _in_another_order(*[0.0] * 16) is None


def test_rounding_in_another_order_may_turn_over_an_item() -> None:
    """As on an H100: the outputs of one batch are rounded otherwise, and one of them is another picture then."""
    assert _in_another_order(*[0.0] * 8, *[0.01] * 7, 0.5) is None
    # Of two items that changed at all, and of one, rounding does not take the middle one so far.
    assert _in_another_order(*[0.0] * 14, 0.4, 0.5) is not None
    assert _in_another_order(*[0.0] * 14, 0.01, 0.5) is None
    # Far by the floor of its item and not by the farthest one of the floor.
    uneven = {"other precision": _items([0.001] * 15 + [0.2])}
    assert _in_another_order(0.05, *[0.0] * 15, floors=uneven) is None
    assert _in_another_order(0.7, *[0.0] * 15, floors=uneven) is not None


def test_single_outputs_in_another_order_may_exceed_all_noise() -> None:
    """All are rounded otherwise; three are farther than rounding and another seed together take their item."""
    said = _in_another_order(*[2.0] * 3, *[0.01] * 13)
    assert said == (
        "Its outputs depend on other requests: in another order 3 of 16 differ by more than all noise of their item in "
        "latent_error (item 000, item 001, item 002)."
    )
    assert _in_another_order(2.0, *[0.01] * 15) is None
    quality = (_answers(0.0, 200),)
    near = _distances(0.1, n=200, metric="psnr", reordered=_items([0.01] * 16))
    far = _distances(0.1, n=200, reordered=_items([2.0] * 2 + [0.01] * 14))
    of_two = Evidence(identical=False, fidelity=(near, far), quality=quality)
    assert "noise of their item in latent_error (item 000, item 001)" in decide(of_two, MARGINS).reason


def test_failure_in_another_order_is_a_loss() -> None:
    verdict = decide(_evidence(_distances(0.0), identical=True, reordered_failures=("item 7",)), MARGINS)
    assert verdict.level is Level.LOSS
    assert "in another order it failed on 1 items (item 7)" in verdict.reason


def test_simulated_false_losses_are_at_the_nominal_rate() -> None:
    """Two primary metrics, 200 items, no true loss: a loss is claimed no more often than was promised."""
    rng = np.random.default_rng(21)
    fidelity = _distances(0.1, n=40)
    levels = []
    for _ in range(1000):
        quality = [
            QualityDifferences(name, _items(rng.normal(0, 6, 200)), bounded=False)
            for name in ("clip_text", "mask_preservation")
        ]
        levels.append(_level(_evidence(fidelity, *quality)))
    losses = sum(level is Level.LOSS for level in levels)
    interval = wilson(losses, 1000).interval
    assert interval is not None
    assert interval[0] <= 1 - MARGINS.confidence <= interval[1]


def test_simulated_loss_of_the_margin_rarely_passes() -> None:
    rng = np.random.default_rng(22)
    fidelity = _distances(0.1, n=40)
    passed = [
        _level(_evidence(fidelity, QualityDifferences("clip_text", _items(rng.normal(-0.5, 2, 200)), bounded=False)))
        is Level.NON_INFERIOR
        for _ in range(1000)
    ]
    interval = wilson(sum(passed), 1000).interval
    assert interval is not None
    assert interval[0] <= 1 - MARGINS.confidence <= interval[1]


def test_verdict_is_repeatable() -> None:
    evidence = _evidence(_distances(0.012), _answers(0.0))
    assert decide(evidence, MARGINS) == decide(evidence, MARGINS)


@pytest.mark.parametrize(
    ("evidence", "level"),
    [
        (_evidence(_distances(0.1, n=200), _answers(0.0, 200)), Level.NON_INFERIOR),
        (_evidence(_distances(0.1), _answers(-0.2)), Level.LOSS),
        (_evidence(_distances(0.1, n=12), _answers(0.0, 12)), Level.CANNOT_TELL),
        (
            _evidence(_distances(0.1, n=2), QualityDifferences("clip_text", _items([0.1, 0.2]), False)),
            Level.CANNOT_TELL,
        ),
    ],
    ids=["no loss", "loss", "few", "two"],
)
def test_verdict_keeps_all_that_it_rests_on(evidence: Evidence, level: Level) -> None:
    verdict = decide(evidence, MARGINS)
    assert verdict.level is level
    assert [len(rests) for rests in (verdict.floor, verdict.seed_noise, verdict.losses)] == [1, 1, 1]


def _floor_verdict(values: Sequence[float], floor: float = 0.01) -> str:
    """What is said of distances to baseline where no quality was measured, with one floor for all items."""
    fidelity = _distances(0.0, floors={"other precision": _items([floor] * 16)})
    verdict = decide(_evidence(replace(fidelity, to_baseline=_items(values))), MARGINS)
    assert len(verdict.floor) == 1
    return verdict.reason


def test_distance_beyond_the_floor_is_named_with_its_bound() -> None:
    unmeasured = "Quality is not measured: no primary metric was measured. The distance to baseline is "
    of = "times the floor (other precision) in latent_error"
    assert _floor_verdict([0.03] * 20) == (
        f"{unmeasured}3.00 {of}, with an upper bound of 3.00 times, where the limit is 1.5."
    )
    assert _floor_verdict([0.02] * 5 + [0.0001] * 3).startswith(
        "The distance to baseline is 2.00 " + of + " at the median,"
    )
    assert f"{unmeasured}over 1000 times the floor" in _floor_verdict([0.2] * 20, floor=0.0001)


def test_enough_items_near_the_floor_may_still_be_too_few() -> None:
    """Eight items are compared, and their bounds lie on both sides of the limit."""
    reason = _floor_verdict([0.012, 0.02] * 4)
    assert reason.startswith("The distance to baseline is ")
    assert reason.endswith(" times, where the limit is 1.5: more items are needed; and no primary metric was measured.")


def test_metrics_that_are_left_out_are_listed() -> None:
    answers = (_answers(0.0, 200), _answers(0.0, 200, "judge_kept"), _answers(0.0, 200, "dino"))
    insensitive = {"judge_done": "it missed blur", "dino": "it missed blur"}
    verdict = decide(_evidence(_distances(0.1, n=200), *answers, insensitive=insensitive), MARGINS)
    assert verdict.reason.endswith("Insensitive here and left out: judge_done, dino.")


def test_doubts_name_what_is_missing() -> None:
    loss = MarginComparison("judge_done", Outcome.UNDECIDED, -0.01, -0.06, 0.04, 0.05, n=100, needed=100)
    change = "The change in judge_done is -0.01 and its bound of -0.06 is beyond -0.05"
    noise = SeedNoiseComparison("ssim", Outcome.UNDECIDED, 0.1, 0.6, 0.5, 1.2)
    few = "in ssim there are too few items to compare the distance to baseline with seed noise"
    assert _doubt_sentence([loss], [noise]) == f"{change}; 100 items were used; {few}."
    assert _doubt_sentence([replace(loss, needed=101)], [replace(noise, outcome=Outcome.PASSED)]) == (
        f"{change}; about 101 items are needed, 100 were used."
    )
    assert _doubt_sentence([], []) == "Seed noise was not measured."
    blind = [replace(noise, metric=metric, outcome=Outcome.INSENSITIVE) for metric in ("ssim", "psnr")]
    assert _doubt_sentence([], blind) == "Rounding alone may exceed the seed-noise limit in ssim and psnr."


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": ("a", "b", "c", "d")},
        {"reordered_failures": ("a",)},
        {"repeats": (Repeat("a", 0, "the input"),)},
        {"seed_spreads": _items([0.01] * 8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_fault_of_single_outputs_stands_with_the_floor(changes: dict[str, object]) -> None:
    verdict = decide(_evidence(_distances(0.009), **changes), MARGINS)
    assert verdict.level is Level.LOSS
    assert len(verdict.floor) == 1
    if "failures" in changes:
        assert verdict.reason == "It failed on 4 items on which baseline succeeded (a, b, c)."
