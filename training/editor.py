"""Transformer and T5 encoder together, by flow matching. The result needs true classifier-free guidance, two passes a
step; the next stage, `guidance`, makes it one."""

from __future__ import annotations

import architecture
import torch
from diffusers import FluxTransformer2DModel
from encoded import batches
from graphs import Tensors
from loop import train
from stages import Run, on_device, set_up_kernels, tokenizers
from transformers import T5EncoderModel
from velocity import Noisy, Velocity, random_guidance

CHANGED_WEIGHT, CHANGED_BY = 3.0, 0.25
"""Weight of the tokens that an edit with one answer changes (mean absolute difference of normalized latents). There the
target is a function of the inputs, so weighting moves no optimum; where answers are many, it would."""


def train_editor(run: Run) -> None:
    set_up_kernels()
    _, t5_tokenizer = tokenizers(run.folder)
    if run.start is None:
        transformer, t5 = architecture.build_transformer(), architecture.build_t5(t5_tokenizer)
    else:
        transformer = FluxTransformer2DModel.from_pretrained(run.start / "transformer", torch_dtype=torch.float32)
        t5 = T5EncoderModel.from_pretrained(run.start / "text_encoder_2", dtype=torch.float32)
    transformer, t5 = on_device(transformer.train(), run.device), t5.to(run.device).train()
    velocity = Velocity(t5, run)

    def loss_of(_kind: str, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        noisy = velocity.noisy(batch)
        # Nothing is guided yet, so it learns to ignore the scale.
        error = (velocity.predicted(transformer, noisy, random_guidance(noisy)) - noisy.velocity).square().mean(-1)
        weight = _weight(noisy, batch)
        return (weight * error).sum() / weight.sum(), {}

    with batches(run) as draw:
        done = train("editor", {"transformer": transformer, "t5": t5}, draw, loss_of, run, average_decay=0.9995)
    transformer.save_pretrained(run.folder / "unguided")
    t5.save_pretrained(run.folder / "t5")
    print("editor finished" if done else "editor stopped early; the same command goes on", flush=True)


def _weight(noisy: Noisy, batch: Tensors) -> torch.Tensor:
    """Of each token of each example, (batch, 64 tokens)."""
    if noisy.reference is None:
        return torch.ones_like(noisy.latents[..., 0])
    changed = (batch["target"].float() - noisy.reference).abs().mean(-1) > CHANGED_BY
    return torch.where(changed & batch["one_answer"][:, None], CHANGED_WEIGHT, 1.0)
