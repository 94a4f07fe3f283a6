"""The errors of the engine against diffusers."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings

from benchmarks.gpu import precision_check
from tools.docs.blocks import precision
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


def test_errors_match_the_rounding_of_each_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[torch.dtype, set[tuple[float, float]]] = defaultdict(set)

    forward = CombinedTimestepGuidanceTextProjEmbeddings.forward

    def remember(module: torch.nn.Module, time: torch.Tensor, guidance: torch.Tensor, pooled: torch.Tensor) -> Any:
        received[pooled.dtype].update(zip(time.tolist(), guidance.tolist(), strict=True))
        return forward(module, time, guidance, pooled)

    out = tmp_path / "precision.json"
    options = ["--checkpoint", "tiny", "--device", "cpu", "--items", "1", "--steps", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["precision_check.py", *options])
    monkeypatch.setattr(CombinedTimestepGuidanceTextProjEmbeddings, "forward", remember)
    assert precision_check.main() == 0
    # Without rounding, float32 would receive a guidance of 2500 and another second timestep.
    assert received[torch.float32] == received[torch.bfloat16] == {(1000, 2496), (616, 2496)}
    assert "| `balanced` | 0.0" in precision.render(DocContext(find_published(tmp_path), None))
    errors = json.loads(out.read_text())["errors"]
    assert set(errors) == {"diffusers, bfloat16", "faithful", "precise", "balanced"}
    assert list(json.loads(out.read_text())["refused"]) == ["fp8 with flash3_fp8"]
    for stage in ("first step", "final latents"):
        plain, faithful, precise, balanced = (
            errors[name]["against diffusers, float32"][stage]
            for name in ("diffusers, bfloat16", "faithful", "precise", "balanced")
        )
        # With other noise the error would be a hundred times as large.
        assert 0 < plain < 0.05
        assert faithful < 1.5 * plain
        assert plain < precise < balanced < 0.1
        assert errors["diffusers, bfloat16"]["against diffusers, bfloat16"][stage] == 0
