"""The autoencoder: squared and absolute error, errors of differences between neighbours, and a light KL term, on the
pictures that edits should give."""

from __future__ import annotations

import architecture
import torch
import torch.nn.functional as F
from data import Pool, edit_chunk, pictures, stream
from diffusers import AutoencoderKL
from graphs import Tensors
from loop import train
from stages import Run, mixed_precision, tokenizers

DETAIL_WEIGHT = 2.0
"""Of errors in the differences of neighbouring pixels (Mathieu et al., arXiv 1511.05440): specks cover so few
pixels that other errors hardly change without them."""
KL_WEIGHT = 3e-4
POOL, CHUNK = 16_384, 512
RENEW_EVERY = 64
"""Pictures that are kept on a GPU, and how many are renewed after how many steps."""
CPU_SHARE = 64
"""On a CPU, the fraction of the pool that is used."""


def train_vae(run: Run) -> None:
    """Afterwards the latents' mean and scale are measured and stored in the config, as FLUX's are."""
    tokenizers(run.folder)
    if run.start is None:
        vae = architecture.build_vae()
    else:
        vae = AutoencoderKL.from_pretrained(run.start / "vae", torch_dtype=torch.float32).train()
    vae = vae.to(run.device, memory_format=torch.channels_last)
    share = 1 if run.device.type == "cuda" else CPU_SHARE
    with stream(
        edit_chunk, seed=run.seed, size=CHUNK // share, tokenizers=run.folder, processes=run.processes
    ) as next_chunk:

        def rendered() -> Tensors:
            return {"picture": pictures(next_chunk(), "target", run.device).bfloat16()}

        pool = Pool.filled_by(rendered, POOL // share)

        def draw(step: int) -> tuple[str, Tensors]:
            if step % RENEW_EVERY == RENEW_EVERY - 1:
                pool.add(rendered())
            return "pictures", pool.draw(run.batch)

        def loss_of(_kind: str, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
            images = batch["picture"].float().to(memory_format=torch.channels_last)
            with mixed_precision(run.device):
                posterior = vae.encode(images).latent_dist
                decoded = vae.decode(posterior.sample()).sample.float()
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            error = decoded - images
            squared = error.square().mean()
            detail = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
            loss = F.l1_loss(decoded, images) + squared + DETAIL_WEIGHT * detail + KL_WEIGHT * divergence
            return loss, {"psnr_db": (-10 * torch.log10(squared / 4)).detach(), "kl": divergence.detach()}

        if train("vae", {"vae": vae}, draw, loss_of, run):
            with torch.no_grad():
                latents = vae.encode(pool.draw(256)["picture"].float()).latent_dist.mean
            vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
            vae.save_pretrained(run.folder / "vae")
