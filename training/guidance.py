"""Guidance distillation, as of FLUX.1 [dev]: given the scale as an input, the transformer learns to answer at once what
classifier-free guidance makes of its two answers, with and without text (Meng et al., arXiv 2210.03142)."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from graphs import Tensors
from loop import train
from stages import Run
from transformers import T5EncoderModel
from velocity import Velocity, random_guidance

from examples import batches


def train_guidance(run: Run) -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass gave NaN
    teacher, transformer = (
        FluxTransformer2DModel.from_pretrained(run.folder / "unguided", torch_dtype=torch.float32).to(run.device)
        for _ in range(2)
    )
    t5 = T5EncoderModel.from_pretrained(run.folder / "t5", dtype=torch.float32).to(run.device)
    for frozen in (teacher, t5):
        frozen.requires_grad_(False)
    if run.device.type == "cuda":
        for module in (teacher, transformer):
            module.compile_repeated_blocks(fullgraph=True, dynamic=False)
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
