"""What loading a checkpoint or a LoRA says where it is refused: one sentence, after which the pipeline is as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kontext_fast.errors import CheckpointUnavailable, InvalidInput
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.lora import load_lora

Weights = dict[str, torch.Tensor]


def refused_checkpoint(checkpoint: Path | str) -> str:
    """Why `checkpoint` is not loaded."""
    with pytest.raises(CheckpointUnavailable) as caught:
        load(str(checkpoint), device="cpu")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def refused_lora(pipe: Any, path: Path) -> str:
    """Why the LoRA at `path` is not loaded into `pipe`, whose weights stay as they are."""
    before = state(pipe)
    with pytest.raises(InvalidInput) as caught, load_lora(pipe, path):
        pass
    after = state(pipe)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def state(pipe: Any) -> Weights:
    """Copies of all weights that a LoRA may change, by component and name."""
    return {
        f"{component}.{name}": value.clone()
        for component in ("transformer", "text_encoder", "text_encoder_2")
        for name, value in getattr(pipe, component).state_dict().items()
    }
