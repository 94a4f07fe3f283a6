"""Guidance distillation, as of FLUX.1 [dev]: given the scale as an input, the transformer learns to answer at once what
classifier-free guidance makes of its two answers, with and without text (Meng et al., arXiv 2210.03142)."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from encoded import batches
from graphs import Tensors
from loop import train
from stages import Run, on_device, set_up_kernels
from transformers import T5EncoderModel
from velocity import Velocity, random_guidance


def train_guidance(run: Run) -> None:
    set_up_kernels()
    unguided = run.folder / "unguided"
    teacher, transformer = (
        on_device(FluxTransformer2DModel.from_pretrained(unguided, torch_dtype=torch.float32), run.device)
        for _ in range(2)
    )
    t5 = T5EncoderModel.from_pretrained(run.folder / "t5", dtype=torch.float32).to(run.device)
    for frozen in (teacher, t5):
        frozen.requires_grad_(False)
    velocity = Velocity(t5, run)

    def loss_of(_kind: str, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        noisy = velocity.noisy(batch)
        scale = random_guidance(noisy)
        with torch.no_grad():
            conditional = velocity.predicted(teacher, noisy, scale)
            unconditional = velocity.predicted(teacher, velocity.without_text(noisy), scale)
            guided = unconditional + scale[:, None, None] * (conditional - unconditional)
        return (velocity.predicted(transformer, noisy, scale) - guided).square().mean(), {}

    with batches(run) as draw:
        done = train("guidance", {"transformer": transformer}, draw, loss_of, run, average_decay=0.999)
    transformer.save_pretrained(run.folder / "transformer")
    print("guidance finished" if done else "guidance stopped early; the same command goes on", flush=True)
