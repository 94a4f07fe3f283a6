"""The rows of a manifest, or the images of a folder, edited one after the other, with their facts in a Parquet file.

A second run does what is missing: rows that failed, and rows whose image is not there or older than its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kontext_fast.cli.output import Outcome, print_json
from kontext_fast.cli.rows.facts import FactsFile, elsewhere_of, facts_of
from kontext_fast.cli.rows.manifest import BadRow, Manifest
from kontext_fast.cli.session import (
    ImageJob,
    OnDone,
    OnMade,
    Setup,
    do_jobs,
    open_session,
    say_how_loras_are_run,
    unfinished,
)
from kontext_fast.errors import Cancelled, InvalidInput, KontextError
from kontext_fast.records.addresses import look_again

Runner = Callable[[Setup, Sequence[ImageJob], FactsFile, Outcome], None]
"""Makes the images of jobs of one setup, records their facts and adds each outcome."""


def make_rows(
    manifest: Manifest, facts_file: FactsFile, run: Runner, *, overwrite: bool, quiet: bool, as_json: bool
) -> None:
    """Do with `run` what is left of `manifest`, write the facts of all rows and report them.

    Raises InvalidInput at the end where some could not be made, and Cancelled.
    """
    with facts_file.writing():
        look_again(elsewhere_of(manifest.work))
        bad = list(manifest.bad)
        work: list[tuple[Setup, Sequence[ImageJob]]] = []
        todo: list[tuple[Setup, list[ImageJob]]] = []
        for setup, jobs in manifest.work:
            left, conflicts = unfinished(jobs, setup, overwrite=overwrite)
            bad.extend(_conflict(job, difference) for job, difference in conflicts)
            in_conflict = {id(job) for job, _ in conflicts}
            work.append((setup, [job for job in jobs if id(job) not in in_conflict]))
            todo.append((setup, left))
        pending = {id(job) for _, left in todo for job in left}
        skipped = [str(job.file.path) for _, jobs in work for job in jobs if id(job) not in pending]
        outcome = Outcome(len(pending) + len(bad), quiet=quiet, as_json=as_json)
        outcome.remark(f"Note: The column {column} is not used." for column in manifest.unused)
        for row in bad:
            outcome.add_failure(f"row {row.row}", InvalidInput(row.reason))
        try:
            _run_all(run, [(setup, left) for setup, left in todo if left], facts_file, outcome, quiet=quiet or as_json)
        finally:
            facts_file.finish(work, bad)
    if as_json:
        print_json(
            {"images": outcome.images, "failed": outcome.failed, "skipped": skipped, "facts": str(facts_file.path)}
        )
    elif not quiet:
        outcome.say_summary(skipped, [f"How each was made stands in {facts_file.path}."])
    outcome.raise_failures()


def _run_all(
    run: Runner,
    todo: Sequence[tuple[Setup, Sequence[ImageJob]]],
    facts_file: FactsFile,
    outcome: Outcome,
    *,
    quiet: bool,
) -> None:
    for setup, left in todo:
        if not quiet:
            say_how_loras_are_run(setup, left[0].asked.steps)
        try:
            run(setup, left, facts_file, outcome)
        except Cancelled:
            raise
        except KontextError as error:
            # What holds for all rows is no row's fault.
            if len(todo) == 1:
                raise
            for job in left:
                facts_file.record(facts_of(job, setup, error=str(error)))
                outcome.add(job, error, preset=setup.preset)


def edit_here(setup: Setup, jobs: Sequence[ImageJob], facts_file: FactsFile, outcome: Outcome) -> None:
    """A `Runner` on this machine, with one pipeline."""
    with open_session(setup) as session, outcome.interruptible():
        outcome.remark(session.notes())
        do_jobs(session, jobs, *recorded(setup, facts_file, outcome.printer(setup.preset, session.bar)))


def recorded(setup: Setup, facts_file: FactsFile, then: OnDone) -> tuple[OnDone, OnMade]:
    """What `do_jobs` is to call, so that the facts of an image are there before it, and `then` is called after it."""

    def done(job: ImageJob, outcome: dict[str, Any] | KontextError) -> None:
        if isinstance(outcome, KontextError):
            facts_file.record(facts_of(job, setup, error=str(outcome)))
        then(job, outcome)

    def made(job: ImageJob, image: dict[str, Any]) -> None:
        facts_file.record(facts_of(job, setup, image=image))

    return done, made


def _conflict(job: ImageJob, difference: str) -> BadRow:
    reason = f"{job.file.path} is there already and {difference}: add --overwrite, or give another output."
    values = {"image": str(job.source), "instruction": job.asked.instruction, "output": job.file.path.name}
    return BadRow(job.row or 0, values, reason)
