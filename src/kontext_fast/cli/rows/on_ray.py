"""Rows edited by the machines of a Ray cluster, with Ray Data: an actor with a pipeline for each GPU, or CPU core.

Every machine reads the inputs and writes the images under the same paths, in a folder that all of them share. The
actors run what `run.edit_here` runs. One that is lost is replaced, and its rows are tried again, but for those whose
image is there; a run whose driver is lost goes on as any second run does.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from kontext_fast.cli.output import Outcome
from kontext_fast.cli.rows.facts import FactsFile
from kontext_fast.cli.rows.run import recorded
from kontext_fast.cli.session import ImageJob, Setup, do_jobs, open_session, unfinished
from kontext_fast.errors import InvalidInput, KontextError, Refused

_ROWS_OF_A_TASK = 8
"""Rows that an actor is given at a time, within which inputs are read ahead and images written behind."""


class RayRunner:
    """A `run.Runner` on a Ray cluster: the one at `address` or `RAY_ADDRESS`, else one of this machine alone.

    Raises Refused where Ray is not installed, and InvalidInput where no cluster answers at `address`.
    """

    def __init__(self, address: str | None, *, overwrite: bool) -> None:
        try:
            import ray
            import ray.data
        except ModuleNotFoundError as error:
            raise Refused(f"--ray needs the package {error.name}; run `pip install 'kontext-fast[ray]'`.") from error
        self._overwrite = overwrite
        # Else it writes remarks on its own workings to stderr, which is for ours.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        there = address or os.environ.get("RAY_ADDRESS") or "local"
        options = {"include_dashboard": False} if there == "local" else {}
        try:
            ray.init(address=there, log_to_driver=False, logging_level="error", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InvalidInput(f"No Ray cluster answers at {there} ({error}); start one with `ray start`.") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self.has_gpus = ray.cluster_resources().get("GPU", 0) >= 1

    def __call__(self, setup: Setup, jobs: Sequence[ImageJob], facts_file: FactsFile, outcome: Outcome) -> None:
        """Make the images of `jobs`. Raises Cancelled on Ctrl-C."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        on_gpu = self.has_gpus and (setup.device or "cuda").startswith("cuda")
        resource = "GPU" if on_gpu else "CPU"
        tasks = -(-len(jobs) // _ROWS_OF_A_TASK)
        actors = max(1, min(int(ray.cluster_resources().get(resource, 1)), tasks))
        DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"job": pickle.dumps(job)} for job in jobs], override_num_blocks=tasks)
        edited = rows.map_batches(
            RowActor,
            fn_constructor_args=(setup, facts_file, self._overwrite, os.getcwd()),
            batch_size=None,
            compute=ActorPoolStrategy(min_size=1, max_size=actors),
            num_gpus=1 if on_gpu else None,
            num_cpus=None if on_gpu else 1,
        )
        by_row = {job.row: job for job in jobs}
        with outcome.interruptible():
            for row in edited.iter_rows():
                number, result = pickle.loads(row["outcome"])
                outcome.add(by_row[number], result, preset=setup.preset)


class RowActor:
    """A pipeline in a process of the cluster. What it cannot load is the reason of each row that it is given."""

    def __init__(self, setup: Setup, facts_file: FactsFile, overwrite: bool, folder: str) -> None:
        os.chdir(folder)
        self._setup, self._facts_file, self._overwrite = setup, facts_file, overwrite
        self._error: KontextError | None = None
        try:
            self._session = ExitStack().enter_context(open_session(setup))
        except KontextError as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The outcome of each job in `batch`; one whose image an actor that was lost has made is not made again."""
        jobs = [pickle.loads(job) for job in batch["job"]]
        outcomes: list[tuple[int | None, dict[str, Any] | KontextError]] = []

        def add(job: ImageJob, outcome: dict[str, Any] | KontextError) -> None:
            outcomes.append((job.row, outcome))

        done, made = recorded(self._setup, self._facts_file, add)
        if self._error is not None:
            for job in jobs:
                done(job, self._error)
        else:
            left, _ = unfinished(jobs, self._setup, overwrite=self._overwrite)
            do_jobs(self._session, left, done, made)
            if len(outcomes) < len(jobs):
                reported = {row for row, _ in outcomes}
                images = self._facts_file.images()
                for job in jobs:
                    if job.row not in reported:
                        add(job, images[str(job.file.path)])
        return {"outcome": [pickle.dumps(outcome) for outcome in outcomes]}
