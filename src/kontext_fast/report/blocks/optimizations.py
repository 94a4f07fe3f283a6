"""Every optimization: what it does, to the output too, its parameters and what it cannot be with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.registry import discover
from kontext_fast.report.markdown import table
from kontext_fast.report.site import Site

HEADER = ("optimization", "what it does", "effect", "parameters", "needs", "not with")


def render(site: Site) -> str:
    """One row each, from the classes themselves."""
    known = discover()
    return table(HEADER, (_cells(one(), known) for one in known.values()))


def _cells(one: Optimization, known: Mapping[str, type[Optimization]]) -> tuple[str, ...]:
    parameters = ", ".join(f"`{name}={_written(value)}`" for name, value in one.parameters().items())
    return (
        f"`{one.name}`",
        one.summary,
        _effects(one),
        parameters,
        ", ".join(f"`{name}`" for name in sorted(one.requires)),
        ", ".join(sorted(_not_with(one, known))),
    )


def _not_with(one: Optimization, known: Mapping[str, type[Optimization]]) -> Iterator[str]:
    """Conflicts are declared on one side only."""
    pairs = [(conflict.other, conflict) for conflict in one.conflicts]
    pairs += [(name, c) for name, other in known.items() for c in other.conflicts if c.other == one.name]
    for other, conflict in pairs:
        when = ", ".join(f"{name}={value}" for name, value in conflict.when.items())
        yield f"`{other}` ({when})" if when else f"`{other}`"


def _effects(one: Optimization) -> str:
    """Of its defaults; in fp8 the engine approximates."""
    if one.name == "engine":
        return f"{Effect.NUMERIC}; {Effect.LOSSY} in fp8"
    return str(one.effect)


def _written(value: object) -> str:
    return "none" if value is None else str(value)
