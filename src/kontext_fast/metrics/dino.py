"""`dino`: cosine between output and input as DINOv2 sees them, i.e. how much of the input is still there.

An output that equals the input scores 1, so this says something only beside a metric of whether the edit was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from kontext_fast.metrics.base import Case, Control, Metric, NotMeasured, Role, Setting
from kontext_fast.metrics.model_files import model_folder, weights_hash

HUB_ID = "facebook/dinov2-small"
_BATCH = 16


class Dino(Metric):
    name: ClassVar[str] = "dino"
    title: ClassVar[str] = "DINO similarity to the input"
    role: ClassVar[Role] = Role.QUALITY
    must_detect: ClassVar[frozenset[Control]] = frozenset({Control.BLUR})

    def prepare(self) -> None:
        _load(self.setting)

    def model(self) -> tuple[str, str]:
        name, sha256, *_ = _load(self.setting)
        return name, sha256

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        import torch

        _, _, model, processor = _load(self.setting)

        def embed(images: list[Any]) -> torch.Tensor:
            pixels = processor(images=images, return_tensors="pt").pixel_values.to(self.setting.device)
            with torch.inference_mode():
                seen: torch.Tensor = model(pixel_values=pixels).pooler_output.float().cpu()
            return torch.nn.functional.normalize(seen, dim=-1)

        scores: list[float | bool | None] = []
        for start in range(0, len(cases), _BATCH):
            chunk = cases[start : start + _BATCH]
            outputs = embed([case.output.convert("RGB") for case in chunk])
            inputs = embed([case.item.image.resize(case.output.size) for case in chunk])
            scores += (outputs * inputs).sum(-1).tolist()
        return scores


@lru_cache(maxsize=1)
def _load(setting: Setting) -> tuple[str, str, Any, Any]:
    """Name, hash, model and processor. Raises NotMeasured."""
    from kontext_fast.pipeline.folder import quiet_libraries

    name, folder = model_folder(setting, "dino", HUB_ID)
    # After the weights were found, since these take seconds to import.
    from transformers import BitImageProcessorPil, Dinov2Model

    sha256 = weights_hash(folder)
    try:
        with quiet_libraries():
            model = Dinov2Model.from_pretrained(folder, local_files_only=True).eval().to(setting.device)
        # The one that needs no torchvision, so that scores do not depend on what is installed.
        processor = BitImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NotMeasured(f"{name} is no readable DINOv2 model ({str(error).splitlines()[0]})") from None
    return name, sha256, model, processor
