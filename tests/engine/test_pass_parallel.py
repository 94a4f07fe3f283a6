"""Passes of true CFG that do not come as announced are an error, never an image. See also `test_several_gpus`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kontext_fast.engine.pass_parallel import PassParallel
from kontext_fast.errors import KontextError


def test_missing_pass_is_an_error() -> None:
    ranks: Any = SimpleNamespace(rank=0, size=2)
    branch: Any = SimpleNamespace(step=lambda _, image, text: image + text)
    passes, ones = PassParallel(ranks), torch.ones(1)
    passes.require_complete()
    assert torch.equal(passes.velocity(0, branch, 0, ones, ones), 2 * ones)
    with pytest.raises(KontextError, match="other passes"):
        passes.velocity(0, branch, 1, ones, ones)
    with pytest.raises(KontextError, match="other passes"):
        passes.require_complete()
