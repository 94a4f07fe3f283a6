"""Whether these records reproduce what was known of four recipes before, measured by other code on one card.

Known on one H200 with PyTorch 2.11, full architecture, random weights, an edit at 1024x1024 in 28 steps, VAE included
and text encoders excluded.
"""

from __future__ import annotations

from typing import Final

from kontext_fast.analysis import format as fmt
from kontext_fast.analysis.groups import Group
from kontext_fast.analysis.rows import process_values
from kontext_fast.analysis.stages import stage_rows
from kontext_fast.report.text.markdown import paragraphs, table
from kontext_fast.stats.intervals import mean_estimate
from tools.docs.doc_context import NOTHING, DocContext

KNOWN_ON: Final = "H200"
CARDS: Final = (KNOWN_ON, "H100 80GB HBM3")
"""Parts of their names. The H100 has the same multiprocessors, with slower memory."""
KNOWN_S: Final = {
    "baseline": 10.31,
    "peer:compiled": 8.22,
    "peer:compiled-float8": 6.14,
    "peer:cache-dit-12-of-28": 2.78,
}
WITHIN: Final = 0.10

HEADER = ("recipe", "known", "card", "here, text encoders excluded", "difference", "n")


def render(site: DocContext) -> str:
    """One row per known figure and card that measured any of them."""
    if site.card is None or site.story is None:
        return NOTHING
    groups = [section.group for section in site.story.sections if _is_like_the_known_one(section.group)]
    if not groups:
        return (
            f"The known figures are of an edit at 1024x1024 in 28 steps on an {KNOWN_ON}; neither that nor an H100 SXM "
            "is recorded here."
        )
    return paragraphs(
        [
            table(HEADER, (_cells(name, known, group) for name, known in KNOWN_S.items() for group in groups)),
            f"Known from one {KNOWN_ON} with PyTorch 2.11. Reproduced is what differs by less than "
            f"{100 * WITHIN:.0f} %. An H100 SXM has the same multiprocessors and slower memory.",
        ]
    )


def _is_like_the_known_one(group: Group) -> bool:
    workload = group.workload
    return (
        any(card in (group.machine or "") for card in CARDS)
        and group.checkpoint is not None
        and group.checkpoint.random_weights
        and group.compile_cache == "user"
        and workload is not None
        and (workload.mode, workload.width, workload.height, workload.steps, workload.batch)
        == ("edit", 1024, 1024, 28, 1)
    )


def _cells(name: str, known_s: float, group: Group) -> tuple[str, ...]:
    asked = (f"`{name}`", f"{known_s:g} s", (group.machine or "").removeprefix("NVIDIA "))
    here = {row.preset: row for row in stage_rows(group)}.get(name)
    runs = group.runs_of(name)
    if here is None or not runs:
        failures = group.failures_of(name)
        return (*asked, failures[0].status if failures else fmt.NOT_MEASURED, "", "")
    whole_s = mean_estimate(process_values(runs)).value
    without_text_s = whole_s - here.stages.get("text_encode", 0.0)
    difference = without_text_s / known_s - 1
    verdict = "reproduced" if abs(difference) < WITHIN else "not reproduced"
    return (*asked, fmt.seconds(without_text_s), f"{100 * difference:+.1f} %, {verdict}", str(len(runs)))
