"""What a passage of a document is rendered from, and the passages that there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kontext_fast.analysis.groups import Group
from kontext_fast.bench.peers import discover_peers
from kontext_fast.discovery import modules_with
from kontext_fast.errors import InvalidInput
from kontext_fast.records import names
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import GroupReport, Report
from kontext_fast.report.text.markup import Markdown, link
from kontext_fast.report.verification import VerificationReport
from tools.docs import blocks
from tools.docs.result_tree import Published

NOTHING = "Nothing of this project has been measured on a GPU yet, so no figure of speed, memory or cost is here."


@dataclass(frozen=True)
class DocContext:
    """The records of a project as one of its documents shows them."""

    published: Published
    report: Report | None = None
    """Of all benchmarks together; None where there is none."""
    charts: tuple[Chart, ...] = ()
    verification: VerificationReport | None = None
    """The newest one; None where there is none."""
    to_root: str = ""
    """From the document's folder to that of the visualizations: empty, or `../`."""

    @property
    def groups(self) -> tuple[GroupReport, ...]:
        """Of the report, the one to lead with first."""
        return self.report.groups if self.report else ()

    @property
    def headline(self) -> GroupReport | None:
        """The comparison to lead with among those that a GPU ran; times of a CPU are never the headline."""
        return next((group for group in self.groups if ran_on_gpu(group.group)), None)

    def stored(self, pattern: str) -> Iterator[tuple[Markdown, Any]]:
        """Of every JSON file below the folder of results whose name matches: a link to it, and what is in it."""
        for file in sorted(self.published.folder.glob(f"**/{pattern}")):
            place = file.relative_to(self.published.folder.parent).as_posix()
            yield link(place, f"{self.to_root}{place}"), json.loads(file.read_text(encoding="utf-8"))

    def link(self, path: Path) -> str:
        """To a chart, which was drawn at `visualizations/<folder>/<file>`."""
        return self.to_root + "/".join(path.parts[-3:])


def ran_on_gpu(group: Group) -> bool:
    return any(names.ran_on_gpu(run.record.environment) for run in group.runs)


def unmeasured_peers(group: GroupReport) -> tuple[str, ...]:
    """The recipes of other projects that are known and were never run as part of `group`."""
    return tuple(name for name in discover_peers() if group.group.row(name) is None)


Render = Callable[[DocContext], Markdown]


@cache
def discover_blocks() -> Mapping[str, Render]:
    """What renders each passage as Markdown, by name: every module of `blocks` has a `render`.

    Raises KontextError for a module that has none.
    """
    return {name: module.render for name, module in modules_with(blocks, "render").items()}


def block(name: str, context: DocContext) -> Markdown:
    """One passage. Raises InvalidInput for a name that no module has."""
    known = discover_blocks()
    if name not in known:
        raise InvalidInput(f"There is no passage {name!r}; choose {', '.join(known)}.")
    return known[name](context)
