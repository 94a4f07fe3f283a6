"""The page of examples/original, rendered from the published figures and our model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from examples.original import figures
from examples.original.figures import Published
from kontext_fast.analysis import format as fmt
from kontext_fast.cost.billing import DAYS_PER_MONTH


def page(of: Published) -> str:
    """Markdown."""
    parts = (
        _head(of),
        _savings(of),
        _providers(of),
        _break_even(of),
        _reduction(of),
        _MISSING,
    )
    return "\n\n".join(parts) + "\n"


def _head(of: Published) -> str:
    return f"""# What the original published, and why its figures differ

As published, not measured here: the figures of Flux-fire, which this project calls the original. Source:
{of.source}.

{of.baseline_s:g} s and {of.optimized_s:g} s per image, {of.steps} steps, {of.card}, {of.day}.
Its benchmark passed no input image, so these are times of text-to-image, not of editing.
This page is rendered by `python -m examples.original.render`; nothing on it is typed by hand.

![Summary of the published figures](h100_summary.png)
![Published prices and savings](h100_cost_analysis.png)"""


def _savings(of: Published) -> str:
    rows = []
    for saving in of.savings:
        value, why = figures.recomputed(of, saving.rule)
        rows.append((f"${saving.usd:,.0f}", saving.where, "none" if value is None else f"${value:,.2f}", why))
    hours, reference = figures.hours_saved_per_day(of), of.reference_usd_per_hour
    return f"""## One workload, five monthly savings

{of.images_per_day:,.0f} images a day, billed by use.

{_table(("published", "where", "by our model", "why it differs"), rows)}

One rule, one price, one month: {hours:.4f} GPU-hours a day at {fmt.usd_rate(reference)}
are ${hours * reference:.3f} a day,
${figures.month(of, reference):,.2f} in {of.days_per_month:g} days and ${figures.true_month(of):,.2f} in a month of
365/12 = {DAYS_PER_MONTH:.2f} days."""


def _providers(of: Published) -> str:
    rows = [
        (name, fmt.usd_rate(price), fmt.usd(figures.month(of, price)))
        for name, price in sorted(of.usd_per_hour.items(), key=lambda row: row[1])
    ]
    rows.append(("mean of the six", f"${of.mean_usd_per_hour:.4f}", f"${figures.month(of, of.mean_usd_per_hour):,.2f}"))
    return f"""## Six prices

The time was measured on an {of.card}. Three of these offers are other products (SXM or NVL), so by our model their
prices would be refused for this time.

{_table(("provider", "per GPU-hour", f"saved in {of.days_per_month:g} days"), rows)}"""


def _break_even(of: Published) -> str:
    development, reference = of.development, of.reference_usd_per_hour
    choices = (
        (
            "overwritten by the last volume",
            figures.month(of, reference, images_per_day=of.volumes[-1]),
        ),
        ("mean of six providers, as it meant to", figures.month(of, of.mean_usd_per_hour)),
        (f"pooled means at {fmt.usd_rate(of.blog_usd_per_hour)}", figures.month(of, of.blog_usd_per_hour, pooled=True)),
        (f"{of.reference_price} at {fmt.usd_rate(reference)}", figures.month(of, reference)),
    )
    rows = [(name, fmt.usd(saved), f"{figures.break_even(of, saved):.2f} months") for name, saved in choices]
    return f"""## Break-even

{development.hours:g} hours at ${development.usd_per_hour:g} are ${development.usd:,.0f}. Published:
{development.break_even_months:g} months; the script computes {figures.published_break_even(of):.2f} from the savings
that its loop had overwritten.

{_table(("savings", "a month", "break-even"), rows)}"""


def _reduction(of: Published) -> str:
    slow, fast = figures.gpus_wanted(of)
    whole_slow, whole_fast = figures.gpus_with_headroom(of)
    floored_slow, floored_fast = int(slow), int(fast)
    return f"""## {of.calculator.reduction_percent:g} % or {100 * figures.reduction(of):.1f} %

`cost_calculator.py` prices {of.calculator.baseline_s:g} s and {of.calculator.optimized_s:g} s, which are not the times
above. Its busiest hour ({100 * of.peak_share:.0f} % of the day) needs {slow:.2f} and {fast:.2f} GPUs.
It cut the fractions off:
{floored_slow} and {floored_fast}, a reduction of {100 * figures.floored_reduction(of):.1f} %, with fleets that would
run at {100 * slow / floored_slow:.0f} % and {100 * fast / floored_fast:.0f} % load. The GPU time falls by
{100 * figures.reduction(of):.1f} %; whole GPUs with headroom are {whole_slow} and {whole_fast}, a reduction of
{100 * (1 - whole_fast / whole_slow):.1f} %."""


_MISSING = """## What none of these figures holds

Cold starts, compilation, idle GPUs, encoding the PNG, storage, retries, the licence of the weights, and
any interval."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "--|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
