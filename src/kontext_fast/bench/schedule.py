"""The next run of a benchmark, computed from the suite and the records alone.

So a benchmark that was stopped, in whatever way, resumes where its records end: there is no other state. A block
(`Record.round`) runs every configuration of a tier once, in random order, on one machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kontext_fast.bench.peers import find_preset
from kontext_fast.bench.suites import Suite, Tier
from kontext_fast.errors import InvalidInput
from kontext_fast.records.names import ONLY, WITHOUT, machine_identity
from kontext_fast.records.schema import BASELINE, CONTROL, Cell, CompileCache, Record

UNFINISHED = ("interrupted", "not measured")
"""Statuses of placeholders, whose run is still to be made."""


@dataclass(frozen=True)
class Configuration:
    """What one process runs; a block has one run of each configuration."""

    name: str
    """In records; the control has a name of its own."""
    compile_cache: CompileCache

    @property
    def preset(self) -> str:
        return BASELINE if self.name == CONTROL else self.name


@dataclass(frozen=True)
class Run:
    configuration: Configuration
    tier: Tier
    round: int
    """Number of its block in the file."""


class Schedule:
    """The randomized complete blocks of a suite. Raises InvalidInput for presets that do not exist."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._tiers = suite.tiers
        self._names = _names(suite)
        self._peers = [name for name in suite.peers if name not in self._names]

    @property
    def blocks(self) -> int:
        """Number of blocks of the whole suite."""
        return sum(tier.rounds for tier in self._tiers)

    def next_run(self, records: Sequence[Record], machine: str | None) -> Run | None:
        """The next run on `machine` (None: not known yet), or None if everything is done.

        A block is completed on the machine on which it was begun. On another machine it is left incomplete, and its
        runs are repeated in a new block.
        """
        for tier in self._tiers:
            if (run := self._next_of(tier, records, machine)) is not None:
                return run
        return None

    def remaining(self, records: Sequence[Record], machine: str | None) -> list[Run]:
        """All runs that are left on `machine`, as far as is known before they are made."""
        return [run for tier in self._tiers for run in self._remaining_of(tier, records, machine)]

    def new_round(self, records: Iterable[Record]) -> int:
        """A block number that is not in use."""
        return max([self.blocks, *(record.round + 1 for record in records)])

    def first_round(self, tier: Tier) -> int:
        """The number of the tier's first block."""
        return sum(earlier.rounds for earlier in self._tiers[: self._tiers.index(tier)])

    def configurations(self, tier: Tier) -> list[Configuration]:
        """What each block of the tier runs, in no particular order."""
        centre = tier == self._tiers[0]
        names = [*self._names, *(self._peers if centre else ())]
        if centre and self._suite.control and BASELINE in names:
            names.append(CONTROL)
        return [Configuration(name, cache) for name in names for cache in self._suite.compile_caches]

    def _next_of(self, tier: Tier, records: Sequence[Record], machine: str | None) -> Run | None:
        wanted = self._wanted(tier, records)
        begun, left = self._begun(tier, records, machine)
        if left <= 0:
            return None
        number = list(begun)[-1] if begun else self._unused_number(tier, records)
        missing = begun.get(number, wanted)
        order = self._order(tier, number)
        return next((Run(configuration, tier, number) for configuration in order if configuration in missing), None)

    def _remaining_of(self, tier: Tier, records: Sequence[Record], machine: str | None) -> list[Run]:
        begun, left = self._begun(tier, records, machine)
        new = [(self.first_round(tier), self._wanted(tier, records))] * max(0, left - len(begun))
        blocks = [*list(begun.items())[:left], *new]
        return [Run(configuration, tier, number) for number, missing in blocks for configuration in missing]

    def _begun(
        self, tier: Tier, records: Sequence[Record], machine: str | None
    ) -> tuple[dict[int, list[Configuration]], int]:
        """What the blocks begun on `machine` still need, the most recent one last, and how many blocks of the tier are
        not complete.
        """
        blocks = _blocks(tier, records)
        wanted = self._wanted(tier, records)
        incomplete = {number: missing for number, done in blocks.items() if (missing := _missing(wanted, done))}
        here = {
            number: missing
            for number, missing in incomplete.items()
            if machine in (None, machine_of(blocks[number]) or machine)
        }
        return here, tier.rounds - (len(blocks) - len(incomplete))

    def _wanted(self, tier: Tier, records: Sequence[Record]) -> list[Configuration]:
        """What a complete block has: a refusal does not change, so it is recorded once and not repeated."""
        refused = {record.preset for record in records if record.status == "refused"}
        return [configuration for configuration in self.configurations(tier) if configuration.name not in refused]

    def _order(self, tier: Tier, number: int) -> list[Configuration]:
        """The random order of a block, which depends on the seed and the number only, not on what ran before."""
        order = self.configurations(tier)
        random.Random(f"{self._suite.seed} {number}").shuffle(order)
        return _cold_first(order)

    def _unused_number(self, tier: Tier, records: Sequence[Record]) -> int:
        used = {record.round for record in records if record.status not in UNFINISHED}
        first = self.first_round(tier)
        return next((n for n in range(first, first + tier.rounds) if n not in used), self.new_round(records))


def ablations(name: str) -> tuple[str, ...]:
    """The preset, then each of its optimizations alone, then the preset without each, without duplicates.

    Raises InvalidInput for an unknown preset and for one that has fewer than two optimizations.
    """
    optimizations = [optimization.name for optimization in find_preset(name).optimizations]
    if len(optimizations) < 2:
        raise InvalidInput(
            f"The preset {name} has {len(optimizations)} optimizations; ablate one that has at least two."
        )
    alone = [f"{name}{ONLY}{optimization}" for optimization in optimizations]
    # Of two optimizations, one without the other is the other alone.
    without = [f"{name}{WITHOUT}{optimization}" for optimization in optimizations] if len(optimizations) > 2 else []
    return (name, *alone, *without)


def _names(suite: Suite) -> list[str]:
    names = [*suite.presets, *(name for preset in suite.ablate for name in ablations(preset))]
    for name in (*names, *suite.peers):
        find_preset(name)
    if CONTROL in names:
        raise InvalidInput(f"The name {CONTROL} is that of the A/A control; choose another preset.")
    return list(dict.fromkeys(names))


def _blocks(tier: Tier, records: Sequence[Record]) -> dict[int, list[Record]]:
    """The finished runs of each block of the tier; the block with the most recent run is last."""
    blocks: dict[int, list[Record]] = {}
    for record in records:
        if record.cells == tier.cells and record.status not in UNFINISHED:
            blocks[record.round] = [*blocks.pop(record.round, []), record]
    return blocks


def _missing(wanted: Sequence[Configuration], done: Sequence[Record]) -> list[Configuration]:
    finished = {(record.preset, record.compile_cache) for record in done}
    return [
        configuration for configuration in wanted if (configuration.name, configuration.compile_cache) not in finished
    ]


def machine_of(block: Sequence[Record]) -> str | None:
    """The machine of a block; None if no run of it got far enough to report one."""
    return next((identity for record in block if (identity := machine_identity(record.environment))), None)


def _cold_first(order: list[Configuration]) -> list[Configuration]:
    """The same order, except that a warm run is swapped with the cold run that fills its cache, if that came later."""
    result = list(order)
    for cold in order:
        warm = Configuration(cold.name, "warm")
        if cold.compile_cache == "cold" and warm in order:
            early, late = sorted((order.index(cold), order.index(warm)))
            result[early], result[late] = cold, warm
    return result


def not_measured_cells(schedule: Schedule, suite: Suite, records: Sequence[Record]) -> Iterator[tuple[Run, Cell]]:
    """Every cell of every configuration without a run, with the first run that would have measured it."""
    for tier in suite.tiers:
        begun = {record.preset for record in records if record.cells == tier.cells and record.status not in UNFINISHED}
        refused = {record.preset for record in records if record.status == "refused"}
        for configuration in schedule.configurations(tier):
            if configuration.name not in begun | refused:
                for cell in tier.cells:
                    yield Run(configuration, tier, schedule.first_round(tier)), cell
