"""Arms of a comparison take turns; the time of a turn itself needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import steps_in_turn


def test_arms_take_turns_and_have_their_median(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def step(arm: str) -> Any:
        def run() -> Tensor:
            ran.append(arm)
            return torch.empty(0)

        return run

    def turn(run: Any, _card: None) -> dict[str, Any]:
        run()
        return {"ms": float(len(ran))}

    monkeypatch.setattr(steps_in_turn, "_turn", turn)
    measured = steps_in_turn.in_turns({"before": step("before"), "now": step("now")}, 3, None)
    assert ran == ["now", "before", "before", "now", "now", "before"]
    assert measured["ms"] == {"now": 4.0, "before": 3.0}
    assert measured["turns"]["before"] == [{"ms": 2.0}, {"ms": 3.0}, {"ms": 6.0}]
