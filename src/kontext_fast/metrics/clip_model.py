"""The CLIP pair behind two metrics: the one trained with `tiny`, one in a given folder, or OpenAI's from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.metrics.base import Metric, NotMeasured, Role, Setting
from kontext_fast.metrics.model_files import model_folder, weights_hash

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

HUB_ID = "openai/clip-vit-large-patch14"
_BATCH = 32


class Clip:
    """Unit vectors of pictures and texts."""

    def __init__(self, name: str, folder: Path, tokenizer: Path, device: str) -> None:
        """Raises NotMeasured where `folder` holds no CLIP model."""
        from transformers import AutoTokenizer, CLIPModel

        from kontext_fast.pipeline.folder import quiet_libraries

        self.name = name
        self.sha256 = weights_hash(folder)
        self._device = device
        try:
            with quiet_libraries():
                model = CLIPModel.from_pretrained(folder, local_files_only=True)
            self._model: Any = model.float().eval().to(device)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        except (OSError, ValueError) as error:
            raise NotMeasured(f"{name} is no readable CLIP model ({str(error).splitlines()[0]})") from None
        self._prepare = _preparation(folder, int(self._model.config.vision_config.image_size))

    def images(self, images: Sequence[Image]) -> torch.Tensor:
        """(n, width), float32 on the CPU."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                pixels = self._prepare(images[start : start + _BATCH]).to(self._device)
                vision = self._model.vision_model(pixel_values=pixels)
                parts.append(self._model.visual_projection(vision.pooler_output).cpu())
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, width), float32 on the CPU; what does not fit is cut off, as CLIP was trained."""
        import torch

        parts = []
        longest = int(self._model.config.text_config.max_position_embeddings)
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                tokens = self._tokenizer(
                    list(texts[start : start + _BATCH]),
                    padding="max_length",
                    max_length=longest,
                    truncation=True,
                    return_tensors="pt",
                ).to(self._device)
                text = self._model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
                parts.append(self._model.text_projection(text.pooler_output).cpu())
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


class ClipMetric(Metric):
    """Base of a metric that embeds images and texts with CLIP."""

    role: ClassVar[Role] = Role.QUALITY

    def prepare(self) -> None:
        load_clip(self.setting)

    def model(self) -> tuple[str, str]:
        clip = load_clip(self.setting)
        return clip.name, clip.sha256


@lru_cache(maxsize=1)
def load_clip(setting: Setting) -> Clip:
    """The pair for a setting, loaded once. Raises NotMeasured."""
    from kontext_fast.pipeline.folder import TINY_FOLDER

    if setting.weights is None and setting.has_judge:
        folder = TINY_FOLDER / "clip"
        if not (folder / "config.json").is_file():
            raise NotMeasured("this installation has no CLIP pair of tiny; reinstall kontext-fast")
        return Clip("CLIP of tiny", folder, TINY_FOLDER / "tokenizer", setting.device)
    name, folder = model_folder(setting, "clip", HUB_ID)
    return Clip(name, folder, folder, setting.device)


def _preparation(folder: Path, side: int) -> Any:
    """Pictures to pixel values: as the folder's own processor says, else scaled to `side` in -1..1, as tiny's was."""
    import torch

    from kontext_fast.metrics.image_batches import tensor

    if (folder / "preprocessor_config.json").is_file():
        from transformers import CLIPImageProcessorPil

        # The one that needs no torchvision, so that scores do not depend on what is installed.
        processor: Any = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return lambda images: (
            processor(images=[image.convert("RGB") for image in images], return_tensors="pt").pixel_values
        )

    def scaled(images: Sequence[Image]) -> torch.Tensor:
        fitted = (image if image.size == (side, side) else image.resize((side, side)) for image in images)
        return torch.stack([tensor(image) for image in fitted]) * 2 - 1

    return scaled
