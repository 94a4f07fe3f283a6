"""A checkpoint whose output depends on every block, as a trained one's does and an untrained one's does not."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.pipelines import SIDE, small_pipeline


def save_dense_checkpoint(folder: Path) -> Path:
    """Two double and two single blocks with random weights large enough to matter, at 64 x 64."""
    pipe = small_pipeline(double=2, single=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if weight.ndim == 2:
                gain = 0.5 if "norm" in name else 1.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain / weight.shape[1] ** 0.5)
    pipe.vae.register_to_config(sample_size=SIDE)
    pipe.save_pretrained(folder)
    return folder
