"""The check of a folder's time, on a CPU, where its numbers mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import folder_check
from kontext_fast.cli.session import Setup, open_session


def test_block_edits_the_same_from_memory_and_files(tmp_path: Path) -> None:
    jobs = folder_check.jobs_in(tmp_path, range(3, 5), 64, 1)
    assert [job.source.name for job in jobs if job.source] == ["3.jpg", "4.png"]
    with open_session(Setup(checkpoint="tiny", preset="baseline", lora=(), device="cpu")) as session:
        row = folder_check.block(session, jobs, every=2, memory_first=False)
        assert (row["images"], row["from_memory"]) == (2, 1)
        assert min(row["memory_s"], row["folder_s"]) > 0
        assert all(job.file.path.is_file() for job in jobs)
        jobs[1].source.unlink()  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match=r"4\.edited.png was not made"):
            folder_check._from_folder(session, jobs)
    blocks = [
        {"images": 4, "from_memory": 2, "memory_s": 4.0, "folder_s": 8.4},
        {"images": 4, "from_memory": 2, "memory_s": 4.0, "folder_s": 9.2},
    ]
    assert folder_check.ratio(blocks) == 1.1
