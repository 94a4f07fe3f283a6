"""True CFG on two GPUs: each computes one of the two passes of a step, as it does alone, and gets the other's velocity.

Nothing is exchanged within a pass, so that this is faster than sharing both, and has the bits of one GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from kontext_fast.errors import KontextError

if TYPE_CHECKING:
    from kontext_fast.engine.ranks import Ranks
    from kontext_fast.engine.transformer import Branch


class PassParallel:
    """The passes of one call, in all of its processes: each runs that of its rank."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._velocities: list[Tensor] = []
        """Of the running step."""

    def velocity(self, index: int, branch: Branch, step: int, image: Tensor, text: Tensor) -> Tensor:
        """[B, N, C] what `branch.step` gives in the process that runs pass `index`. In another one it holds nothing
        until the last pass of the step has been asked for.

        Raises KontextError where passes do not come in their order.
        """
        if index != len(self._velocities):
            raise KontextError(_OTHER_PASSES)
        velocity = branch.step(step, image, text) if index == self._ranks.rank else branch.elsewhere(step, image)
        self._velocities.append(velocity.contiguous())
        if len(self._velocities) == self._ranks.size:
            for rank, of_rank in enumerate(self._velocities):
                # As bytes, since not every backend takes every dtype.
                dist.broadcast(of_rank.view(torch.uint8), src=rank)
            self._velocities.clear()
        return velocity

    def require_complete(self) -> None:
        """Raise KontextError where passes of the last step are missing."""
        if self._velocities:
            raise KontextError(_OTHER_PASSES)


_OTHER_PASSES = (
    "The pipeline ran other passes than those of true CFG, so the image is wrong; leave out gpus, or the negative "
    "prompt."
)
