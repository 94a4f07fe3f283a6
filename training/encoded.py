"""Batches of encoded edits and captioned pictures for the transformer's stages, from pools that are renewed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from clip import text_half
from data import Arrays, Pool, caption_chunk, edit_chunk, pictures, stream
from diffusers import AutoencoderKL, FluxKontextPipeline
from graphs import Tensors
from stages import Run, mixed_precision

CAPTION_EVERY = 7
"""Every seventh step draws text-to-image, which has no reference: 14 % of the training."""
POOL, START = 262_144, 49_152
REFRESH_EVERY, REFRESH = 128, 2048
"""Size of the pool of encoded edits, its size before the first step, and how many are renewed after how many steps."""
CPU_SHARE = 512
"""On a CPU, the fraction of the pool that is used."""


@contextmanager
def batches(run: Run) -> Iterator[Callable[[int], tuple[str, Tensors]]]:
    """Yields a function from the number of a step to its kind, "edits" or "captions", and its batch."""
    encoder = Encoder(run)
    share = 1 if run.device.type == "cuda" else CPU_SHARE
    capacity, first, chunk = POOL // share, START // share, REFRESH // share
    captioners = max(1, run.processes // 4)
    with (
        stream(edit_chunk, seed=run.seed, size=chunk, tokenizers=run.folder, processes=run.processes) as next_edits,
        stream(
            caption_chunk, seed=run.seed + 1, size=chunk, tokenizers=run.folder, processes=captioners
        ) as next_captions,
    ):
        started = time.monotonic()
        edits = Pool.filled_by(lambda: encoder.rows(next_edits()), capacity, first)
        captions = Pool.filled_by(lambda: encoder.rows(next_captions()), capacity // 4, first // 4)
        print(f"latent pools filled in {time.monotonic() - started:.0f} s", flush=True)

        def draw(step: int) -> tuple[str, Tensors]:
            if step % REFRESH_EVERY == REFRESH_EVERY - 1:
                edits.add(encoder.rows(next_edits()))
            if step % (8 * REFRESH_EVERY) == REFRESH_EVERY - 1:
                captions.add(encoder.rows(next_captions()))
            if step % CAPTION_EVERY == CAPTION_EVERY - 1:
                return "captions", captions.draw(run.batch)
            return "edits", edits.draw(run.batch)

        yield draw


class Encoder:
    """Turns chunks of scenes into packed, normalized latents and what the text encoders need."""

    def __init__(self, run: Run) -> None:
        self._device = run.device
        self._vae = AutoencoderKL.from_pretrained(run.folder / "vae").to(run.device).eval()
        self._clip = text_half(run.folder).to(run.device).eval()

    @torch.no_grad()
    def rows(self, chunk: Arrays) -> dict[str, torch.Tensor]:
        """t5 (n, 48) ids, pooled (n, 128) and target (n, 64 tokens, 64 channels); of edits source, like the target, and
        one_answer (n,) too."""
        rows = {"t5": torch.as_tensor(chunk["t5"], device=self._device), "pooled": self.pooled(chunk["clip"])}
        if "one_answer" in chunk:
            rows["one_answer"] = torch.as_tensor(chunk["one_answer"], device=self._device)
        for name in ("source", "target"):
            if f"{name}_shapes" in chunk:
                rows[name] = self._latents(pictures(chunk, name, self._device))
        return rows

    def pooled(self, ids: object) -> torch.Tensor:
        return self._clip(input_ids=torch.as_tensor(ids, device=self._device).long()).pooler_output

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.split(512):
            with mixed_precision(self._device):
                mean = self._vae.encode(part.to(memory_format=torch.channels_last)).latent_dist.mean
            parts.append((mean.float() - self._vae.config.shift_factor) * self._vae.config.scaling_factor)
        latents = torch.cat(parts)
        return FluxKontextPipeline._pack_latents(latents, *latents.shape).to(torch.bfloat16)
