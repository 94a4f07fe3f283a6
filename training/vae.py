"""The autoencoder: absolute and squared error plus a light KL term, on the pictures that edits should give."""

from __future__ import annotations

import architecture
import torch
import torch.nn.functional as F
from data import Pool, edit_chunk, pictures, stream
from loop import train
from stages import Run, mixed_precision, tokenizers

CROP, WHOLE_SHARE = 64, 0.1
"""Crops of a quarter of the picture teach most in the least time; the last tenth of the steps sees whole pictures."""
KL_WEIGHT = 3e-4
POOL = 16_384
RENEW_EVERY = 16
"""Pictures that are kept on a GPU, and after how many steps a batch of them is renewed."""
CPU_SHARE = 64
"""A CPU gets by with this fraction of the pool."""


def train_vae(run: Run) -> None:
    """Afterwards the latents' mean and scale are measured and stored in the config, as FLUX's are."""
    tokenizers(run.folder)
    vae = architecture.build_vae().to(run.device, memory_format=torch.channels_last)
    with stream(edit_chunk, seed=31, size=run.batch, tokenizers=run.folder, processes=run.processes) as next_chunk:

        def rendered() -> dict[str, torch.Tensor]:
            return {"picture": pictures(next_chunk(), "target", run.device).bfloat16()}

        pool = Pool.filled_by(rendered, POOL if run.device.type == "cuda" else POOL // CPU_SHARE)

        def loss_of(step: int, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            if step % RENEW_EVERY == RENEW_EVERY - 1:
                pool.add(rendered())
            images = pool.draw(run.batch)["picture"].float()
            if progress < 1 - WHOLE_SHARE:
                images = random_crop(images, CROP)
            else:
                images = images[: max(1, len(images) // 4)]
            images = images.to(memory_format=torch.channels_last)
            with mixed_precision(run.device):
                posterior = vae.encode(images).latent_dist
                decoded = vae.decode(posterior.sample()).sample.float()
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            squared = F.mse_loss(decoded, images)
            loss = F.l1_loss(decoded, images) + squared + KL_WEIGHT * divergence
            return loss, {"psnr_db": (-10 * torch.log10(squared / 4)).detach(), "kl": divergence.detach()}

        if train("vae", {"vae": vae}, loss_of, run):
            with torch.no_grad():
                images = pool.draw(256)["picture"].float()
                latents = vae.encode(images).latent_dist.mean
            vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
            vae.save_pretrained(run.folder / "vae")


def random_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """The same random window of every picture, (n, 3, size, size)."""
    top, left = (int(torch.randint(images.shape[-1] - size + 1, ())) for _ in range(2))
    return images[:, :, top : top + size, left : left + size]
