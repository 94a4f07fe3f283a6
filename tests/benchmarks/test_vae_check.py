"""The check of the VAE, on the VAE of `tiny`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import vae_check
from tests.pipelines import SIDE, small_pipeline


def test_variants_are_held_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_check, "_CALLS", 2)
    vae = small_pipeline().vae
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latent_dist.mode()
        reference = {"encode": latents, "decode": vae.decode(latents).sample}
        results = {
            name: vae_check._measured(vae, variant, image, latents, reference)
            for name, variant in vae_check.VARIANTS.items()
        }
    assert all(stage["ms"] > 0 and stage["error"] < 1e-5 for stages in results.values() for stage in stages.values())
    assert results["as it is"]["decode"]["error"] == 0
