"""What a project publishes, rendered from the records in its `results/`: passages of its documents, charts, reports."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import write_atomically
from kontext_fast.report.charting import Chart
from kontext_fast.report.model import Report, build_report, usual_question
from kontext_fast.report.output.publish import DOCUMENTS, QUALITY_PAGE, write_report
from kontext_fast.report.output.quality_page import write_page
from kontext_fast.report.verification import VerificationReport, build_verification_report
from tools.docs.doc_blocks import inject
from tools.docs.doc_context import DocContext, block, ran_on_gpu
from tools.docs.hero import write_hero
from tools.docs.result_tree import Published, find_published
from tools.docs.studied_distances import studied_distances

RESULTS, RENDERED = "results", ("reports", "visualizations")
_PICTURE = re.compile(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+")


def render_repository(root: Path, out: Path | None = None) -> None:
    """Render all that `root` publishes, in place or below `out`.

    Below `results/` are any number of result folders. Benchmarks become one set of charts and reports, verifications a
    page of the newest one that judges the most presets; the verdict on a preset is that of its newest. Marked passages
    are filled in `README.md` and `docs/*.md`; without any records they say so, and there are no charts and reports.
    Raises InvalidInput for records or passages that cannot be read.
    """
    out = root if out is None else out
    published = find_published(root / RESULTS)
    verification = _verification(published, out)
    report, charts = _benchmark(published, verification, out)
    for document in _documents(root):
        text = document.read_text(encoding="utf-8")
        place = document.relative_to(root)
        context = DocContext(published, report, charts, verification, to_root="../" * (len(place.parts) - 1))
        rendered = inject(text, partial(block, context=context), place.as_posix())
        if rendered != text or out != root:
            write_atomically(out / place, rendered.encode())


def differences(root: Path) -> list[str]:
    """What `render_repository` would change in `root`, one clause each; pictures are not compared pixel by pixel."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        render_repository(root, out)
        rendered, present = _files(out), _files(root)
        changes = [f"{name} is not rendered" for name in sorted(rendered.keys() - present.keys())]
        gone = sorted(name for name in present.keys() - rendered.keys() if _is_rendered(name))
        changes += [f"{name} is of records that are gone" for name in gone]
        for name in sorted(rendered.keys() & present.keys()):
            if (rendered[name].suffix != ".png") and _comparable(rendered[name]) != _comparable(root / name):
                changes.append(f"{name} differs from its records")
        return changes


def _verification(published: Published, out: Path) -> VerificationReport | None:
    """Write the page of the newest verification of the most presets; later ones of fewer are named there."""
    if not published.verifications:
        return None
    stored = published.verifications
    lead = max(range(len(stored)), key=lambda index: (_judged_presets(stored[index][1]), index))
    store, result = stored[lead]
    newer = tuple(build_verification_report(later) for _, later in stored[lead + 1 :])
    report = build_verification_report(result, newer)
    write_page(report, store, out)
    return report


def _judged_presets(result: ResultFile) -> int:
    return sum(record.arm is not None and record.arm.role == "preset" for record in result.records)


def _benchmark(
    published: Published, verification: VerificationReport | None, out: Path
) -> tuple[Report | None, tuple[Chart, ...]]:
    """Write the charts and documents of all benchmarks together."""
    if published.speed is None:
        return None, ()
    question = usual_question(published.day)
    lead = build_report(published.speed, question).lead
    report = build_report(
        published.speed,
        question,
        verified=verification,
        distances=studied_distances(published.folder, lead.group if lead else None),
        kept_in=" and ".join(published.places),
    )
    quality_page = f"../{QUALITY_PAGE.as_posix()}" if verification else None
    samples_file = out / RESULTS / "samples.csv"
    if report.lead is not None and ran_on_gpu(report.lead.group):
        write_hero(report, out / "visualizations")
    return report, write_report(report, published.images, out, samples_file, DOCUMENTS, quality_page=quality_page)


def _documents(root: Path) -> Iterator[Path]:
    yield from (path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file())


def _files(root: Path) -> dict[str, Path]:
    """What may be rendered, by its place in the project."""
    files = [*_documents(root), *(root / RESULTS).glob("samples.csv")]
    files += [path for folder in RENDERED for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path for path in files}


def _is_rendered(name: str) -> bool:
    return name.startswith((*(f"{folder}/" for folder in RENDERED), f"{RESULTS}/"))


def _comparable(path: Path) -> str:
    """The text without its pictures, whose bytes depend on the versions of what drew them."""
    return _PICTURE.sub("picture", path.read_text(encoding="utf-8"))
