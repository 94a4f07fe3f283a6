"""How many modules run on the way to a kernel and in an edit, and that a preset runs no techniques but its own."""

from __future__ import annotations

import re
import subprocess
import sys

from tools.call_path import MOST_OF_AN_EDIT, MOST_TO_A_KERNEL


def test_call_paths_stay_within_their_limits() -> None:
    """In a process of its own: in this one caches are filled, and what they hold would not run again."""
    done = subprocess.run([sys.executable, "-m", "tools.call_path"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    to_a_kernel, of_an_edit = (listed.split() for listed in re.findall(r"modules .*\n((?:  \S+\n)+)", done.stdout))
    assert len(to_a_kernel) <= MOST_TO_A_KERNEL <= 14
    assert len(of_an_edit) <= MOST_OF_AN_EDIT <= 15
    assert {"optimizations.acceleration", "engine.transformer"} <= set(to_a_kernel)
    assert {"cli.edit", "pipeline.edit", "pipeline.sizes", "pipeline.images"} <= set(of_an_edit)
    techniques = {name.rpartition(".")[2] for name in to_a_kernel if ".techniques." in name}
    assert techniques == {"engine", "fused_vae"}
