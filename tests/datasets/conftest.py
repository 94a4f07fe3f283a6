"""Parts of the bundled checkpoint that the judge is tested with."""

from __future__ import annotations

import pytest
import torch

from kontext_fast.pipeline.folder import TINY_FOLDER


@pytest.fixture(scope="session")
def tiny_vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    vae: torch.nn.Module = AutoencoderKL.from_pretrained(TINY_FOLDER / "vae").float().eval()
    return vae
