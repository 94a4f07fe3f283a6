"""Every optimization: what it does, to the output too, its parameters and what it cannot be with."""

from __future__ import annotations

from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.registry import conflicts_by_name, discover
from kontext_fast.report.text.markup import table
from tools.docs.doc_context import DocContext

HEADER = ("optimization", "what it does", "effect", "parameters", "needs", "not with")


def render(context: DocContext) -> str:
    """One row each, from the classes themselves."""
    conflicts = conflicts_by_name()
    against = {name: sorted(f"`{one.other}`{one.conflict.condition}" for one in conflicts[name]) for name in conflicts}
    return table(HEADER, (_cells(one(), against[name]) for name, one in discover().items()))


def _cells(one: Optimization, against: list[str]) -> tuple[str, ...]:
    return (
        f"`{one.name}`",
        one.summary,
        "; ".join(
            [str(one.effect), *(f"{effect} in {', '.join(choices)}" for effect, choices in _other_effects(one).items())]
        ),
        ", ".join(f"`{name}={_written(value)}`" for name, value in one.parameters().items()),
        ", ".join(f"`{name}`" for name in sorted(one.requires)),
        ", ".join(against),
    )


def _other_effects(one: Optimization) -> dict[Effect, list[str]]:
    """Choices of a parameter, each with the rest at its default, by what else they do to the output."""
    effects: dict[Effect, list[str]] = {}
    for name, choices in one.choices().items():
        for choice in choices:
            if (effect := type(one)(**{name: choice}).effect) != one.effect:
                effects.setdefault(effect, []).append(choice)
    return effects


def _written(value: object) -> str:
    return "none" if value is None else str(value)
