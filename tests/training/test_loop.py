"""The training loop: an interrupted stage ends where an uninterrupted one does, and fits the time it is given."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import loop
from stages import Run


def run(folder: Path, *, steps: int = 40, stop_after_s: float = math.inf, within_s: float | None = None) -> Run:
    return Run(
        folder=folder,
        schedule=loop.Schedule(steps=steps, learning_rate=0.05, warmup=5),
        batch=8,
        seed=1,
        start=None,
        stop_after_s=stop_after_s,
        within_s=within_s,
        started=time.monotonic(),
        device=torch.device("cpu"),
        processes=1,
    )


class Line:
    """Learns y = 3x; `pause` is how long a step takes."""

    def __init__(self, pause: float = 0.0) -> None:
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.steps: list[int] = []
        self._pause = pause

    def draw(self, step: int) -> tuple[str, dict[str, torch.Tensor]]:
        self.steps.append(step)
        time.sleep(self._pause)
        return "numbers", {"x": torch.randn(8, 1, generator=torch.Generator().manual_seed(step))}

    def loss(self, _kind: str, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = batch["x"]
        return (self.model(x) - 3 * x).square().mean(), {}


def train(line: Line, of: Run) -> bool:
    return loop.train("line", {"line": line.model}, line.draw, line.loss, of, average_decay=0.9)


def test_training_learns_and_stores_the_average(tmp_path: Path) -> None:
    line = Line()
    assert train(line, run(tmp_path, steps=400))
    assert line.model.weight.item() == pytest.approx(3.0, abs=0.05)


def test_interrupted_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, first, rest = Line(), Line(pause=0.01), Line()
    train(whole, run(tmp_path / "whole"))
    assert not train(first, run(tmp_path / "parts", stop_after_s=0.1))
    assert 0 < len(first.steps) < 40
    assert train(rest, run(tmp_path / "parts"))
    assert first.steps + rest.steps == whole.steps
    assert rest.model.weight.item() == pytest.approx(whole.model.weight.item(), rel=1e-6)


def test_training_fits_its_time_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PROBE", (5, 15))
    line = Line(pause=0.01)
    began = time.monotonic()
    assert train(line, run(tmp_path, steps=10_000, within_s=1.0))
    assert 30 < len(line.steps) <= 100
    assert time.monotonic() - began == pytest.approx(1.0, abs=0.35)


def test_fitted_length_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PROBE", (5, 15))
    assert not train(Line(pause=0.01), run(tmp_path, steps=10_000, within_s=1.0, stop_after_s=0.4))
    rest = Line()
    assert train(rest, run(tmp_path, steps=10_000, within_s=1.0))
    assert 30 < rest.steps[-1] + 1 <= 100


def test_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    line = Line()
    torch.nn.init.constant_(line.model.weight, math.nan)
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        train(line, run(tmp_path))
