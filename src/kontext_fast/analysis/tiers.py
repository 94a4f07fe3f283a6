"""Rows of a group that do the same work, side by side: all steps in full precision, all steps in 8 bit, and so many
evaluations of the transformer where steps are skipped or left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kontext_fast.analysis.benchmark import AnalyzedGroup
from kontext_fast.analysis.groups import Plan
from kontext_fast.analysis.rows import Row
from kontext_fast.records.names import is_peer, parse_ablation
from kontext_fast.records.schema import BASELINE, CONTROL, EMULATED

NEAR = 1
"""A rival is compared with a preset of ours where it makes as many evaluations, or one more or fewer."""
_EIGHT_BIT = re.compile(r"float8|fp8|int8")
_MEANINGLESS = "hit rate meaningless"


@dataclass(frozen=True)
class Tier:
    """Rows that may be compared with each other, slow to fast; the first tier begins with baseline."""

    name: str
    """`all 28 steps, 16 bit` or `11 to 12 evaluations, 8 bit`."""
    rows: tuple[Row, ...]

    @property
    def ours(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if _is_ours(row))

    @property
    def best_rival(self) -> Row | None:
        """The fastest recipe of another project, with an interval or without."""
        peers = [row for row in self.rows if is_peer(row.preset) and row.time]
        return min(peers, key=_seconds, default=None)


def tiers(group: AnalyzedGroup) -> tuple[Tier, ...]:
    """The tiers that have a preset of ours, most evaluations first.

    What skips work by data on random weights is in none: how much it skips there means nothing. Nor is what works on
    other things than whole steps, such as recipes that recompute the attentions of a step alone.
    """
    steps = group.workload.steps if group.workload else 0
    rows = _comparable(group)
    plans = {row.preset: group.plans.get(row.preset, ()) for row in rows}
    whole = [row for row in rows if row.computed_steps is None or row.computed_steps.mean == steps]
    candidates = [
        Tier(f"all {steps} steps, 16 bit", tuple(row for row in whole if not _is_lossy(plans[row.preset]))),
        Tier(
            f"all {steps} steps, 8 bit",
            tuple(row for row in whole if _is_lossy(plans[row.preset]) and is_only_rounded(plans[row.preset])),
        ),
        *_bands([row for row in rows if row not in whole], plans),
    ]
    return tuple(tier for tier in candidates if tier.ours)


def our_rows(group: AnalyzedGroup) -> tuple[Row, ...]:
    """Our presets that a reader may choose by their times, slow to fast, whether or not they are in a tier."""
    return tuple(row for row in _comparable(group) if _is_ours(row))


MOST_ROWS = 8
"""A chart of a group shows every preset up to here; of more, those that `shown_rows` chooses."""


def shown_rows(group: AnalyzedGroup) -> tuple[Row, ...]:
    """What a chart shows of a group, slow to fast: all but the control and ablations where those are few, else
    baseline, our presets, failed ones among them, and the best rival of each tier. Tables have all rows.
    """
    rows = [row for row in group.ranked if row.preset != CONTROL and not parse_ablation(row.preset)]
    if len(rows) > MOST_ROWS:
        rivals = {tier.best_rival.preset for tier in tiers(group) if tier.best_rival}
        rows = [row for row in rows if not is_peer(row.preset) or row.preset in rivals]
    return tuple(rows)


def _comparable(group: AnalyzedGroup) -> list[Row]:
    rows = [row for row in group.ranked if row.time and row.preset != CONTROL and not parse_ablation(row.preset)]
    return [row for row in rows if not is_meaningless(row) and EMULATED not in row.labels]


def _bands(rows: Sequence[Row], plans: dict[str, Plan]) -> Iterable[Tier]:
    """Our presets by their evaluations and precision, each with the rivals nearest to it."""
    keys = {row.preset: (evaluations(row), is_eight_bit(plans[row.preset])) for row in rows}
    bands: dict[tuple[float, bool], list[Row]] = {}
    for row in sorted((row for row in rows if _is_ours(row)), key=evaluations, reverse=True):
        bands.setdefault(keys[row.preset], []).append(row)
    for row in (row for row in rows if is_peer(row.preset)):
        count, eight_bit = keys[row.preset]
        near = [key for key in bands if key[1] == eight_bit and abs(key[0] - count) <= NEAR]
        if near:
            bands[min(near, key=lambda key: abs(key[0] - count))].append(row)
    for (_, eight_bit), members in bands.items():
        counts = sorted({evaluations(row) for row in members})
        span = " to ".join(dict.fromkeys(f"{count:.3g}" for count in (counts[0], counts[-1])))
        bits = "8 bit" if eight_bit else "16 bit"
        yield Tier(f"{span} evaluations, {bits}", tuple(sorted(members, key=_seconds, reverse=True)))


def may_claim(row: Row) -> bool:
    """Whether its time supports a claim: it has an interval, and no hit rate of random weights."""
    return row.time is not None and row.time.mean.interval is not None and not is_meaningless(row)


def is_meaningless(row: Row) -> bool:
    """Whether it skips by data where data are random."""
    return any(_MEANINGLESS in label for label in row.labels)


def evaluations(row: Row) -> float:
    """Runs of the transformer in a call."""
    return row.computed_steps.mean if row.computed_steps else 0.0


def is_eight_bit(plan: Plan) -> bool:
    """Whether it runs products of matrices in 8 bit, as far as the names in its plan say."""
    return any(
        _EIGHT_BIT.search(step.name) or _EIGHT_BIT.search(str(step.parameters.get("precision", ""))) for step in plan
    )


def is_only_rounded(plan: Plan) -> bool:
    """Whether 8 bit is all that it loses."""
    return all(step.effect != "lossy" or is_eight_bit((step,)) for step in plan)


def _is_lossy(plan: Plan) -> bool:
    return any(step.effect == "lossy" for step in plan)


def _is_ours(row: Row) -> bool:
    return not is_peer(row.preset) and row.preset not in (BASELINE, CONTROL)


def _seconds(row: Row) -> float:
    return row.time.mean.value if row.time else 0.0
