"""Transformer and T5 encoder together, by flow matching on velocities (Lipman et al., arXiv 2210.02747).

Reference latents are fed as Kontext feeds them: appended to the noisy tokens, with 1 in the first id channel.
"""

from __future__ import annotations

import time

import architecture
import torch
from clip import text_half
from data import Arrays, Pool, caption_chunk, edit_chunk, pictures, stream
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from graphs import Tensors
from loop import train
from stages import Run, mixed_precision, tokenizers
from transformers import T5EncoderModel

CAPTION_EVERY = 7
"""Every seventh step draws text-to-image, which has no reference: 14 % of the training."""
TEXT_DROPOUT = 0.08
"""Share of instructions replaced by nothing, so that true classifier-free guidance has something to guide away from."""
GUIDANCE = (1.0, 5.0)
"""Drawn at random and without effect: nothing was distilled, so `tiny` learns to ignore it."""
SIGMA_SHIFT, SIGMA_SPREAD = 0.5, 1.4
"""Of the logit-normal noise levels that are trained; high levels matter most, where the edit itself is decided."""
CHANGED_WEIGHT, CHANGED_BY = 3.0, 0.25
"""Weight of the tokens that an edit with one answer changes (mean absolute difference of normalized latents). There the
target is a function of the inputs, so weighting moves no optimum; where answers are many, it would."""
POOL, START = 262_144, 49_152
REFRESH_EVERY, REFRESH = 128, 2048
"""Encoded edits that are kept, how many of them there are before the first step, and how many come after how many."""
CPU_SHARE = 512
"""A CPU gets by with this fraction of the pool."""


def train_editor(run: Run) -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass gave NaN
    torch.set_float32_matmul_precision("high")
    _, t5_tokenizer = tokenizers(run.folder)
    if run.start is None:
        transformer, t5 = architecture.build_transformer(), architecture.build_t5(t5_tokenizer)
    else:
        transformer = FluxTransformer2DModel.from_pretrained(run.start / "transformer", torch_dtype=torch.float32)
        t5 = T5EncoderModel.from_pretrained(run.start / "text_encoder_2", dtype=torch.float32)
    transformer, t5 = transformer.to(run.device).train(), t5.to(run.device).train()
    if run.device.type == "cuda":
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    encoder = Encoder(run)
    velocity = Velocity(transformer, t5, run)
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

        def loss_of(kind: str, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
            return velocity.loss(batch, dropout=0.0 if kind == "captions" else TEXT_DROPOUT), {}

        modules = {"transformer": transformer, "t5": t5}
        done = train("editor", modules, draw, loss_of, run, average_decay=0.9995)
    for name, module in modules.items():
        module.save_pretrained(run.folder / name)
    print("editor finished" if done else "editor stopped early; the same command goes on", flush=True)


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


class Velocity:
    """The transformer's error in the velocity from data to noise, at random noise levels."""

    def __init__(self, transformer: FluxTransformer2DModel, t5: T5EncoderModel, run: Run) -> None:
        self._transformer, self._t5, self._device = transformer, t5, run.device
        side = architecture.IMAGE_SIZE // 16
        self._image_ids = FluxKontextPipeline._prepare_latent_image_ids(1, side, side, run.device, torch.float32)
        self._reference_ids = self._image_ids.clone()
        self._reference_ids[:, 0] = 1
        self._text_ids = torch.zeros(architecture.TEXT_TOKENS, 3, device=run.device)
        clip, t5_tokenizer = tokenizers(run.folder)
        self._no_t5, no_clip = (
            torch.as_tensor(
                tokenizer([""], padding="max_length", max_length=architecture.TEXT_TOKENS).input_ids, device=run.device
            )
            for tokenizer in (t5_tokenizer, clip)
        )
        with torch.no_grad():
            self._no_pooled = text_half(run.folder).to(run.device)(input_ids=no_clip).pooler_output

    def loss(self, rows: dict[str, torch.Tensor], dropout: float) -> torch.Tensor:
        clean = rows["target"].float()
        batch = len(clean)
        dropped = torch.rand(batch, 1, device=self._device) < dropout
        t5_ids = torch.where(dropped, self._no_t5, rows["t5"].long())
        pooled = torch.where(dropped, self._no_pooled, rows["pooled"])
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(batch, device=self._device) * SIGMA_SPREAD + SIGMA_SHIFT)
        level = sigma[:, None, None]
        noisy = (1 - level) * clean + level * noise
        reference = rows.get("source")
        edits = reference is not None
        with mixed_precision(self._device):
            predicted = self._transformer(
                hidden_states=torch.cat([noisy, reference.float()], dim=1) if edits else noisy,
                encoder_hidden_states=self._t5(input_ids=t5_ids).last_hidden_state,
                pooled_projections=pooled,
                timestep=sigma,
                img_ids=torch.cat([self._image_ids, self._reference_ids]) if edits else self._image_ids,
                txt_ids=self._text_ids,
                guidance=torch.empty(batch, device=self._device).uniform_(*GUIDANCE),
                return_dict=False,
            )[0][:, : noisy.shape[1]]
        error = (predicted.float() - (noise - clean)).square().mean(-1)
        if not edits:
            return error.mean()
        changed = (clean - reference.float()).abs().mean(-1) > CHANGED_BY
        weight = torch.where(changed & rows["one_answer"][:, None], CHANGED_WEIGHT, 1.0)
        return (weight * error).sum() / weight.sum()
