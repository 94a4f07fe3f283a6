"""Flow matching: noisy latents, the velocity from data to noise at them, and what a transformer makes of it.

Lipman et al., arXiv 2210.02747. Reference latents are fed as Kontext feeds them: appended to the noisy tokens, with 1
in the first id channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import architecture
import torch
from clip import text_half
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from graphs import Tensors
from stages import Run, mixed_precision, tokenizers
from transformers import T5EncoderModel

TEXT_DROPOUT = 0.08
"""Share of the instructions and captions that are dropped, to train the unconditional velocity for guidance."""
SIGMA_SHIFT, SIGMA_SPREAD = 0.5, 1.4
"""Of the logit-normal noise levels that are trained; high levels matter most, where the edit itself is decided."""


@dataclass(frozen=True)
class Noisy:
    """Examples at random noise levels, `batch` of them."""

    latents: torch.Tensor
    """(batch, 64 tokens, 64 channels), float32: (1 - sigma) * data + sigma * noise."""
    velocity: torch.Tensor
    """noise - data, like `latents`."""
    sigma: torch.Tensor
    """(batch,), 0 to 1."""
    reference: torch.Tensor | None
    """Latents of the image that is edited, like `latents`; None for pictures from captions."""
    t5_ids: torch.Tensor
    """(batch, 48)."""
    pooled: torch.Tensor
    """(batch, 128), CLIP's."""


class Velocity:
    """Adds noise to examples and predicts their velocity."""

    def __init__(self, t5: T5EncoderModel, run: Run) -> None:
        self._t5, self._device = t5, run.device
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

    def noisy(self, rows: Tensors) -> Noisy:
        """`rows` of encoded.Encoder, noised; some lose their text."""
        clean = rows["target"].float()
        batch, reference = len(clean), rows.get("source")
        dropped = torch.rand(batch, 1, device=self._device) < TEXT_DROPOUT
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(batch, device=self._device) * SIGMA_SPREAD + SIGMA_SHIFT)
        level = sigma[:, None, None]
        return Noisy(
            latents=(1 - level) * clean + level * noise,
            velocity=noise - clean,
            sigma=sigma,
            reference=None if reference is None else reference.float(),
            t5_ids=torch.where(dropped, self._no_t5, rows["t5"].long()),
            pooled=torch.where(dropped, self._no_pooled, rows["pooled"]),
        )

    def without_text(self, noisy: Noisy) -> Noisy:
        """The same with no instruction or caption."""
        return replace(
            noisy, t5_ids=self._no_t5.expand_as(noisy.t5_ids), pooled=self._no_pooled.expand_as(noisy.pooled)
        )

    def predicted(self, transformer: FluxTransformer2DModel, noisy: Noisy, guidance: torch.Tensor) -> torch.Tensor:
        """The velocity that `transformer` predicts at embedded `guidance` (batch,); like `noisy.latents`."""
        tokens, ids = noisy.latents, self._image_ids
        if noisy.reference is not None:
            tokens, ids = torch.cat([tokens, noisy.reference], dim=1), torch.cat([ids, self._reference_ids])
        with mixed_precision(self._device):
            output = transformer(
                hidden_states=tokens,
                encoder_hidden_states=self._t5(input_ids=noisy.t5_ids).last_hidden_state,
                pooled_projections=noisy.pooled,
                timestep=noisy.sigma,
                img_ids=ids,
                txt_ids=self._text_ids,
                guidance=guidance,
                return_dict=False,
            )[0]
        return output[:, : noisy.latents.shape[1]].float()


def random_guidance(noisy: Noisy) -> torch.Tensor:
    """A guidance scale for each example, (batch,): uniform from 1, which is none, to 5."""
    return torch.empty_like(noisy.sigma).uniform_(1.0, 5.0)
