"""Trains `tiny` in three stages, each within ten minutes on one modern GPU and resumable.

    python training/train.py clip   --out runs/tiny     contrastive pair; its text half conditions the transformer
    python training/train.py vae    --out runs/tiny     autoencoder
    python training/train.py editor --out runs/tiny     transformer and T5 encoder, flow matching
    python training/train.py export --out runs/tiny     writes the diffusers folder runs/tiny/tiny

Run them in this order. A stage that was interrupted goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import architecture
import torch
import torch.nn.functional as F
from data import Arrays, LatentPool, caption_chunk, edit_chunk, pictures, sentences, stream
from diffusers import AutoencoderKL, FluxKontextPipeline
from loop import Schedule, train
from transformers import AutoTokenizer, CLIPModel, CLIPTextModel

VAE_CROP, VAE_WHOLE_SHARE = 64, 0.1
"""Crops of a quarter of the picture teach most in the least time; the last tenth of the steps sees whole pictures."""
KL_WEIGHT = 3e-4
CAPTION_EVERY = 7
"""Every seventh step draws text-to-image, which has no reference: 14 % of the training."""
TEXT_DROPOUT = 0.08
"""Share of instructions replaced by nothing, so that true classifier-free guidance has something to guide away from."""
POOL = 262_144
REFRESH_EVERY, REFRESH = 96, 2048


def device_and_processes() -> tuple[torch.device, int]:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu"), max(1, (os.cpu_count() or 2) - 1)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 on a GPU; float32 on a CPU, where bf16 is slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def random_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """The same random window of every picture, (n, 3, size, size)."""
    top, left = (int(torch.randint(images.shape[-1] - size + 1, ())) for _ in range(2))
    return images[:, :, top : top + size, left : left + size]


def tokenizers(folder: Path) -> tuple[object, object]:
    """CLIP's and T5's tokenizer, built from training sentences on first use and stored in `folder`."""
    if not (folder / "tokenizer_2").exists():
        corpus = sentences(20_000, seed=11)
        architecture.build_clip_tokenizer(corpus).save_pretrained(folder / "tokenizer")
        architecture.build_t5_tokenizer(corpus).save_pretrained(folder / "tokenizer_2")
    return tuple(AutoTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))


def train_clip(folder: Path, schedule: Schedule, batch: int, stop_after_s: float) -> None:
    """Symmetric cross-entropy over a batch of (caption, picture) pairs; Radford et al., arXiv 2103.00020."""
    device, processes = device_and_processes()
    clip_tokenizer, _ = tokenizers(folder)
    model = architecture.build_clip(clip_tokenizer).to(device)
    with stream(caption_chunk, seed=21, size=batch, tokenizers=folder, processes=processes) as next_chunk:

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            chunk = next_chunk()
            images = pictures(chunk, "target", device)
            ids = torch.as_tensor(chunk["clip"], device=device).long()
            with mixed_precision(device):
                output = model(input_ids=ids, pixel_values=images)
            logits = output.logits_per_text.float()
            truth = torch.arange(len(logits), device=device)
            loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
            return loss, {"accuracy": (logits.argmax(1) == truth).float().mean().detach()}

        if train("clip", {"clip": model}, loss_of, schedule, folder, stop_after_s=stop_after_s):
            model.save_pretrained(folder / "clip")


def train_vae(folder: Path, schedule: Schedule, batch: int, stop_after_s: float) -> None:
    """Absolute error plus a light KL term, then the latents' mean and scale are measured and stored in the config."""
    device, processes = device_and_processes()
    tokenizers(folder)
    vae = architecture.build_vae().to(device, memory_format=torch.channels_last)
    with stream(edit_chunk, seed=31, size=batch, tokenizers=folder, processes=processes) as next_chunk:

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            images = pictures(next_chunk(), "target", device)
            if step < (1 - VAE_WHOLE_SHARE) * schedule.steps:
                images = random_crop(images, VAE_CROP)
            else:
                images = images[: max(1, len(images) // 4)]
            images = images.to(memory_format=torch.channels_last)
            with mixed_precision(device):
                posterior = vae.encode(images).latent_dist
                decoded = vae.decode(posterior.sample()).sample.float()
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            squared = F.mse_loss(decoded, images)
            loss = F.l1_loss(decoded, images) + squared + KL_WEIGHT * divergence
            return loss, {"psnr_db": (-10 * torch.log10(squared / 4)).detach(), "kl": divergence.detach()}

        if train("vae", {"vae": vae}, loss_of, schedule, folder, stop_after_s=stop_after_s):
            with torch.no_grad():
                latents = torch.cat(
                    [vae.encode(pictures(next_chunk(), "target", device)).latent_dist.mean for _ in range(8)]
                )
            vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
            print("latents: shift", vae.config.shift_factor, "scale", vae.config.scaling_factor)
            vae.save_pretrained(folder / "vae")


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(n, 16, 16, 16) latents as (n, 64 tokens, 64 channels), the pipeline's own packing."""
    return FluxKontextPipeline._pack_latents(latents, *latents.shape)


class Encoder:
    """Turns chunks of scenes into packed, normalized latents and token ids on the device."""

    def __init__(self, vae: AutoencoderKL, device: torch.device) -> None:
        self.vae, self.device = vae, device

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.split(512):
            with mixed_precision(self.device):
                mean = self.vae.encode(part.to(memory_format=torch.channels_last)).latent_dist.mean
            parts.append((mean.float() - self.vae.config.shift_factor) * self.vae.config.scaling_factor)
        return pack(torch.cat(parts)).to(torch.bfloat16)

    def rows(self, chunk: Arrays) -> dict[str, torch.Tensor]:
        rows = {name: torch.as_tensor(chunk[name], device=self.device) for name in ("t5", "clip")}
        for name in ("source", "target"):
            if f"{name}_shapes" in chunk:
                rows[name] = self.latents(pictures(chunk, name, self.device))
        return rows


def filled_pool(encoder: Encoder, next_chunk, capacity: int) -> LatentPool:
    rows = encoder.rows(next_chunk())
    pool = LatentPool.empty(rows, capacity)
    pool.add(rows)
    while pool.filled < capacity:
        pool.add(encoder.rows(next_chunk()))
    return pool


def train_editor(folder: Path, schedule: Schedule, batch: int, stop_after_s: float) -> None:
    """Flow matching (Lipman et al., arXiv 2210.02747) on velocities, reference latents appended as Kontext does."""
    device, processes = device_and_processes()
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass gave NaN
    torch.set_float32_matmul_precision("high")
    _, t5_tokenizer = tokenizers(folder)
    transformer, t5 = architecture.build_transformer().to(device), architecture.build_t5(t5_tokenizer).to(device)
    clip_text = clip_text_half(folder).to(device).eval()
    encoder = Encoder(AutoencoderKL.from_pretrained(folder / "vae").to(device).eval(), device)
    side = architecture.IMAGE_SIZE // 16
    image_ids = FluxKontextPipeline._prepare_latent_image_ids(1, side, side, device, torch.float32)
    reference_ids = image_ids.clone()
    reference_ids[:, 0] = 1
    text_ids = torch.zeros(architecture.TEXT_TOKENS, 3, device=device)
    nothing = {
        name: torch.as_tensor(
            tokenizer("", padding="max_length", max_length=architecture.TEXT_TOKENS).input_ids, device=device
        )
        for name, tokenizer in zip(("clip", "t5"), tokenizers(folder), strict=True)
    }

    def velocity_loss(t5_ids, pooled, noisy, sigma, guidance, reference, velocity):  # type: ignore[no-untyped-def]
        with mixed_precision(device):
            text = t5(input_ids=t5_ids).last_hidden_state
            tokens = noisy if reference is None else torch.cat([noisy, reference], dim=1)
            ids = image_ids if reference is None else torch.cat([image_ids, reference_ids])
            predicted = transformer(
                hidden_states=tokens,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=sigma,
                img_ids=ids,
                txt_ids=text_ids,
                guidance=guidance,
                return_dict=False,
            )[0][:, : noisy.shape[1]]
        return F.mse_loss(predicted.float(), velocity)

    if device.type == "cuda":
        velocity_loss = torch.compile(velocity_loss, dynamic=False)
    capacity, chunk = (POOL, REFRESH) if device.type == "cuda" else (POOL // 64, REFRESH // 16)
    started = time.monotonic()
    with (
        stream(edit_chunk, seed=41, size=chunk, tokenizers=folder, processes=processes) as next_edits,
        stream(
            caption_chunk, seed=42, size=chunk, tokenizers=folder, processes=max(1, processes // 6)
        ) as next_captions,
    ):
        pools = {
            "edit": filled_pool(encoder, next_edits, capacity),
            "caption": filled_pool(encoder, next_captions, capacity // 4),
        }
        print(f"latent pools filled in {time.monotonic() - started:.0f} s", flush=True)

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            if step % REFRESH_EVERY == REFRESH_EVERY - 1:
                pools["edit"].add(encoder.rows(next_edits()))
                if step % (4 * REFRESH_EVERY) == REFRESH_EVERY - 1:
                    pools["caption"].add(encoder.rows(next_captions()))
            is_caption = step % CAPTION_EVERY == CAPTION_EVERY - 1
            rows = pools["caption" if is_caption else "edit"].draw(batch)
            dropped = (torch.rand(batch, 1, device=device) < TEXT_DROPOUT) & (not is_caption)
            t5_ids, clip_ids = (torch.where(dropped, nothing[name], rows[name].long()) for name in ("t5", "clip"))
            with torch.no_grad(), mixed_precision(device):
                pooled = clip_text(input_ids=clip_ids).pooler_output
            clean = rows["target"].float()
            noise = torch.randn_like(clean)
            sigma = torch.sigmoid(torch.randn(batch, device=device) * 1.2 + 0.3)
            level = sigma[:, None, None]
            guidance = torch.empty(batch, device=device).uniform_(1.0, 5.0)
            noisy = (1 - level) * clean + level * noise
            loss = velocity_loss(t5_ids, pooled, noisy, sigma, guidance, rows.get("source"), noise - clean)
            return loss, {"text_to_image": torch.tensor(float(is_caption))}

        modules = {"transformer": transformer, "t5": t5}
        done = train("editor", modules, loss_of, schedule, folder, average_decay=0.9995, stop_after_s=stop_after_s)
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    print("editor finished" if done else "editor stopped early; the same command goes on", flush=True)


def clip_text_half(folder: Path) -> CLIPTextModel:
    """The text half of the contrastive pair, as the pipeline's `text_encoder`."""
    pair = CLIPModel.from_pretrained(folder / "clip")
    text = CLIPTextModel(pair.config.text_config)
    text.load_state_dict(
        {
            f"text_model.{k}" if not hasattr(text, "embeddings") else k: v
            for k, v in pair.text_model.state_dict().items()
        }
    )
    return text


def export(folder: Path) -> None:
    """Writes the pipeline folder in bf16, the contrastive pair beside it in `clip/`."""
    from diffusers import FluxTransformer2DModel
    from transformers import T5EncoderModel

    clip_tokenizer, t5_tokenizer = tokenizers(folder)
    pipe = FluxKontextPipeline(
        scheduler=architecture.build_scheduler(),
        vae=AutoencoderKL.from_pretrained(folder / "vae").bfloat16(),
        text_encoder=clip_text_half(folder).bfloat16(),
        tokenizer=clip_tokenizer,
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "t5").bfloat16(),
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel.from_pretrained(folder / "transformer").bfloat16(),
    )
    pipe.save_pretrained(folder / "tiny")
    CLIPModel.from_pretrained(folder / "clip").bfloat16().save_pretrained(folder / "tiny" / "clip")
    for path in (folder / "tiny").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@dataclass(frozen=True)
class Stage:
    """How a stage is trained on one modern GPU."""

    train: Callable[[Path, Schedule, int, float], None]
    schedule: Schedule
    batch: int
    seed: int


STAGES = {
    "clip": Stage(train_clip, Schedule(steps=1_500, learning_rate=1e-3), batch=1024, seed=1),
    "vae": Stage(train_vae, Schedule(steps=6_000, learning_rate=8e-4), batch=512, seed=2),
    "editor": Stage(train_editor, Schedule(steps=40_000, learning_rate=1e-3, warmup=500), batch=512, seed=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("clip", "vae", "editor", "export"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, help="instead of the stage's own, for a slower device or a longer training"
    )
    parser.add_argument("--batch", type=int, help="instead of the stage's own")
    parser.add_argument(
        "--stop-after", type=float, default=math.inf, metavar="SECONDS", help="pause and keep the state"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "export":
        export(arguments.out)
        return
    stage = STAGES[arguments.stage]
    torch.manual_seed(stage.seed)
    schedule = stage.schedule if arguments.steps is None else replace(stage.schedule, steps=arguments.steps)
    stage.train(arguments.out, schedule, arguments.batch or stage.batch, arguments.stop_after)


if __name__ == "__main__":
    main()
