"""What the first call of a process costs more than a later one, with nothing compiled on disk and with everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kontext_fast.records.machine import ran_on_gpu
from kontext_fast.report import format as write
from kontext_fast.report.groups import Group
from kontext_fast.report.headline import process_values
from kontext_fast.report.markdown import bullets, paragraphs, table
from kontext_fast.report.site import Site
from kontext_fast.stats.summary import mean_estimate

HEADER = ("preset", "compile cache", "size", "applying took", "first call at it", "later calls", "more at first", "n")


def render(site: Site) -> str:
    """Rows in the order in which a process ran them: its first size, and sizes that it had not seen."""
    sections = site.story.sections if site.story else ()
    groups = [one.group for one in sections if one.group.compile_cache != "user" and _on_a_card(one.group)]
    if not groups:
        return "Not measured on a GPU yet."
    rows = [tuple(_cells(group, preset)) for group in groups for preset in group.presets if group.runs_of(preset)]
    machines = dict.fromkeys(group.machine for group in groups)
    return paragraphs([table(HEADER, rows), bullets(f"{machine}." for machine in machines if machine)])


def _on_a_card(group: Group) -> bool:
    return any(ran_on_gpu(run.record.environment) for run in group.runs)


def _cells(group: Group, preset: str) -> Iterator[str]:
    runs = group.runs_of(preset)
    workload = group.workload
    assert workload is not None
    # A process pays for applying before its first size only.
    applied = [run.record.apply_s for run in runs if run.measurement.first_call_s is not None]
    first, later = (
        _mean([run.measurement.samples[0].wall_s for run in runs]),
        mean_estimate(process_values(runs)).value,
    )
    yield from (f"`{preset}`", group.compile_cache, f"{workload.width}x{workload.height}")
    yield write.seconds(_mean([one for one in applied if one is not None])) if applied else ""
    yield from (write.seconds(first), write.seconds(later), write.seconds(first - later), str(len(runs)))


def _mean(values: Sequence[float]) -> float:
    return mean_estimate(values).value
