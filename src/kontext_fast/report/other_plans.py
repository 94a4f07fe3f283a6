"""What presets did with plans other than the one that counts, in words, so that no run goes unmentioned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kontext_fast.report.groups import Group, Plan


def of_other_plans(group: Group) -> tuple[str, ...]:
    """One sentence per difference, with every preset that ran so and how often its runs ended how."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for record in group.of_other_plans:
        difference = plan_difference(record.plan, group.plans[record.preset])
        found.setdefault(difference, Counter())[record.preset, record.status] += 1
    return tuple(
        f"With another plan than is counted ({difference}): "
        f"{', '.join(f'{preset} ({n} {status})' for (preset, status), n in ends.items())}."
        for difference, ends in found.items()
    )


def plan_difference(plan: Plan, counted: Plan) -> str:
    """How `plan` differs from the one that counts: `torchao_float8: coordinate_descent true, not false`."""
    own, other = ({one.name: one.parameters for one in of} for of in (plan, counted))
    clauses = [f"without {name}" for name in other if name not in own]
    for name, parameters in own.items():
        if name not in other:
            clauses.append(f"with {name}")
            continue
        keys = dict.fromkeys([*parameters, *other[name]])
        values = [(key, _value(parameters, key), _value(other[name], key)) for key in keys]
        clauses += [f"{name}: {key} {one}, not {another}" for key, one, another in values if one != another]
    return "; ".join(clauses) or "in another order"


def _value(parameters: Mapping[str, Any], key: str) -> str:
    return json.dumps(parameters[key]) if key in parameters else "unset"
