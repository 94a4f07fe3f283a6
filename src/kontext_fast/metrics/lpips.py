"""`lpips`: learned perceptual distance between two outputs for the same item and seed, on SqueezeNet.

torchmetrics computes it and brings the linear heads; the backbone's weights are torchvision's.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from kontext_fast.metrics.base import REFERENCE, Case, Control, Metric, Need, NotMeasured, Role, Setting
from kontext_fast.metrics.image_batches import pairwise

BACKBONE = "squeezenet1_1-b8a52dc0.pth"


class Lpips(Metric):
    name: ClassVar[str] = "lpips"
    title: ClassVar[str] = "LPIPS"
    role: ClassVar[Role] = Role.FIDELITY
    needs: ClassVar[tuple[Need, ...]] = (REFERENCE,)
    must_detect: ClassVar[frozenset[Control]] = frozenset(Control)

    def prepare(self) -> None:
        _load(self.setting)

    def model(self) -> tuple[str, str]:
        return f"LPIPS on {BACKBONE}", _load(self.setting)[0]

    def scores(self, cases: Sequence[Case]) -> list[float | bool | None]:
        import torch

        _, network = _load(self.setting)
        device = self.setting.device

        def distance(outputs: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                # The metric gives the mean of what it is called with.
                alone = [
                    network(outputs[index : index + 1].to(device), references[index : index + 1].to(device)).cpu()
                    for index in range(len(outputs))
                ]
                return torch.stack(alone)

        return [float(value) for value in pairwise(cases, distance)]


@lru_cache(maxsize=1)
def _load(setting: Setting) -> tuple[str, Any]:
    """Hash of the backbone and the network. Raises NotMeasured."""
    if find_spec("torchvision") is None:
        raise NotMeasured("it needs torchvision, which is not installed; pip install torchvision")
    import torch
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    from kontext_fast.pipeline.folder import weights_sha256

    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    provided = None if setting.weights is None else setting.weights / "lpips" / BACKBONE
    if provided is not None and provided.is_file() and not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(provided, cached)
    if not cached.is_file():
        raise NotMeasured(
            f"the weights {BACKBONE} are not on this machine; put the file from download.pytorch.org/models into "
            "a folder lpips of the given weights"
        )
    network = LearnedPerceptualImagePatchSimilarity(net_type="squeeze", normalize=True).eval().to(setting.device)
    return weights_sha256([cached]), network
