"""Every optimization: what it does, its effect on the output, its parameters, needs and conflicts."""

from __future__ import annotations

from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.registry import conflicts_by_name, discover
from kontext_fast.report.text.markup import Markdown, code_span, joined, table
from tools.docs.doc_context import DocContext

HEADER = ("optimization", "what it does", "effect", "parameters", "needs", "not with")


def render(context: DocContext) -> Markdown:
    """One row each, from the classes themselves."""
    conflicts = conflicts_by_name()
    against = {
        name: sorted(
            Markdown("{}{}").format(code_span(other.other), Markdown(other.conflict.condition))
            for other in conflicts[name]
        )
        for name in conflicts
    }
    return table(HEADER, (_cells(optimization(), against[name]) for name, optimization in discover().items()))


def _cells(optimization: Optimization, against: list[Markdown]) -> tuple[str, ...]:
    return (
        code_span(optimization.name),
        optimization.summary,
        "; ".join(
            [
                str(optimization.effect),
                *(f"{effect} in {', '.join(choices)}" for effect, choices in _other_effects(optimization).items()),
            ]
        ),
        joined(code_span(f"{name}={_written(value)}") for name, value in optimization.parameters().items()),
        joined(map(code_span, sorted(optimization.requires))),
        joined(against),
    )


def _other_effects(optimization: Optimization) -> dict[Effect, list[str]]:
    """Choices of a parameter, each with the rest at its default, by what else they do to the output."""
    effects: dict[Effect, list[str]] = {}
    for name, choices in optimization.choices().items():
        for choice in choices:
            if (effect := type(optimization)(**{name: choice}).effect) != optimization.effect:
                effects.setdefault(effect, []).append(choice)
    return effects


def _written(value: object) -> str:
    return "none" if value is None else str(value)
