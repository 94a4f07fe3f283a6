"""The contrastive pair: symmetric cross-entropy over (caption, picture) pairs, Radford et al., arXiv 2103.00020."""

from __future__ import annotations

from pathlib import Path

import architecture
import torch
import torch.nn.functional as F
from data import caption_chunk, pictures, stream
from graphs import Tensors
from loop import train
from stages import Run, mixed_precision, tokenizers
from transformers import CLIPModel, CLIPTextModel


def train_clip(run: Run) -> None:
    clip_tokenizer, _ = tokenizers(run.folder)
    model = architecture.build_clip(clip_tokenizer).to(run.device)
    with stream(caption_chunk, seed=21, size=run.batch, tokenizers=run.folder, processes=run.processes) as next_chunk:

        def draw(_step: int) -> tuple[str, Tensors]:
            chunk = next_chunk()
            ids = torch.as_tensor(chunk["clip"], device=run.device).long()
            return "pairs", {"ids": ids, "images": pictures(chunk, "target", run.device)}

        def loss_of(_kind: str, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
            with mixed_precision(run.device):
                output = model(input_ids=batch["ids"], pixel_values=batch["images"])
            logits = output.logits_per_text.float()
            truth = torch.arange(len(logits), device=run.device)
            loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
            return loss, {"accuracy": (logits.argmax(1) == truth).float().mean().detach()}

        if train("clip", {"clip": model}, draw, loss_of, run):
            model.save_pretrained(run.folder / "clip")


def text_half(folder: Path) -> CLIPTextModel:
    """The text half of the trained pair, as the pipeline's `text_encoder`."""
    pair = CLIPModel.from_pretrained(folder / "clip")
    text = CLIPTextModel(pair.config.text_config)
    text.load_state_dict(pair.text_model.state_dict())
    return text
