from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kontext_fast.discovery import classes
from kontext_fast.errors import KontextError
from kontext_fast.metrics.base import LATENTS, PICTURE_CONTROLS, REFERENCE, Metric, Role, discover

METRIC = """
from kontext_fast.metrics.base import Metric, Role
class New(Metric):
    name = {name!r}
    title = "new"
    role = Role.QUALITY
    must_detect = frozenset()
    def scores(self, cases):
        return [1.0 for _ in cases]
"""


def test_every_metric_declares_its_controls() -> None:
    known = discover()
    assert {"judge_done", "judge_kept", "psnr", "ssim", "latent_error", "clip_text", "clip_directional"} <= set(known)
    assert {"dino", "lpips"} <= set(known)
    for name, metric in known.items():
        assert metric.name == name
        assert metric.title
        assert metric.must_detect, f"{name} could never be found insensitive"
        if LATENTS in metric.needs:
            assert not metric.must_detect & PICTURE_CONTROLS
        assert (metric.role is Role.FIDELITY) == bool({REFERENCE, LATENTS} & set(metric.needs))


def _package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **modules: str) -> object:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return __import__(name)


def test_new_file_is_a_new_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = classes(_package(tmp_path, monkeypatch, "some_metrics", one=METRIC.format(name="one")), Metric, "metric")  # type: ignore[arg-type]
    assert list(metrics) == ["one"]


def test_duplicate_name_and_broken_module_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = _package(tmp_path, monkeypatch, "twin_metrics", a=METRIC.format(name="x"), b=METRIC.format(name="x"))
    with pytest.raises(KontextError, match="both define the metric 'x'"):
        classes(twins, Metric, "metric")  # type: ignore[arg-type]
    broken = _package(tmp_path, monkeypatch, "broken_metrics", a="import nothing_of_this_name")
    with pytest.raises(KontextError, match=r"broken_metrics\.a does not import"):
        classes(broken, Metric, "metric")  # type: ignore[arg-type]


def test_discovery_imports_no_torch() -> None:
    code = "import sys; from kontext_fast.metrics.base import discover; discover(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
