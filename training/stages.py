"""What the stages share: tokenizers, the device, and the precision of the loss."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import architecture
import torch
from data import sentences
from diffusers import FluxTransformer2DModel
from loop import Schedule
from transformers import AutoTokenizer


@dataclass(frozen=True)
class Run:
    """One invocation of a stage."""

    folder: Path
    """Holds tokenizers, finished parts and the state to resume from."""
    schedule: Schedule
    batch: int
    seed: int
    """Seed of the training data."""
    start: Path | None
    """A pipeline's folder whose weights training starts from; None: from random ones."""
    stop_after_s: float
    within_s: float | None
    """Choose the number of steps so that the stage takes this long on this device; None: the schedule's own number."""
    started: float
    """time.monotonic() at which the stage began."""
    device: torch.device
    processes: int
    """Number of processes that draw training data."""


@dataclass(frozen=True)
class Stage:
    """How a stage is trained on one modern GPU."""

    train: Callable[[Run], None]
    schedule: Schedule
    batch: int
    seed: int


def usual_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usual_processes() -> int:
    return max(1, (os.cpu_count() or 2) - 1)


def set_up_kernels() -> None:
    """TF32 where products are in float32, and no attention through cuDNN, whose backward pass gave NaN."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)


def on_device(transformer: FluxTransformer2DModel, device: torch.device) -> FluxTransformer2DModel:
    """`transformer` there, its blocks compiled on a GPU."""
    transformer.to(device)
    if device.type == "cuda":
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return transformer


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 on a GPU; float32 on a CPU, where bf16 is slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def tokenizers(folder: Path) -> tuple[Any, Any]:
    """CLIP's and T5's tokenizer, built from training sentences on first use and stored in `folder`."""
    if not (folder / "tokenizer_2").exists():
        corpus = sentences(20_000, seed=11)
        architecture.build_clip_tokenizer(corpus).save_pretrained(folder / "tokenizer")
        architecture.build_t5_tokenizer(corpus).save_pretrained(folder / "tokenizer_2")
    clip, t5 = (AutoTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))
    return clip, t5
