"""Projects that cannot be run next to this package; each is refused with the reason."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from kontext_fast.errors import Refused
from kontext_fast.optimizations.base import Effect, Facts, Optimization, Phase
from kontext_fast.optimizations.presets import declare_preset

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine


class Unsupported(Optimization):
    """Refused on every machine, so that a comparison states why a project is missing from it."""

    name: ClassVar[str] = "unsupported"
    summary: ClassVar[str] = "cannot be run next to this package"
    effect: ClassVar[Effect] = Effect.LOSSY
    phase: ClassVar[Phase] = Phase.STEPS

    reason: str
    """One sentence that says what to do instead."""

    def refusal(self, machine: Machine) -> str | None:
        """Always the reason."""
        return self.reason

    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Raises Refused."""
        raise Refused(f"{self.reason}.")


PARA_ATTENTION = declare_preset(
    "peer:para-attention",
    "refused: TypeError on diffusers 0.42",
    (
        Unsupported(
            reason="ParaAttention 0.3.38 fails on diffusers 0.42 (TypeError: a single block misses its "
            "encoder_hidden_states); use peer:first-block-cache, which is diffusers' version of it"
        ),
    ),
    source="https://github.com/chengzeyi/ParaAttention",
)

REGION_E = declare_preset(
    "peer:regione",
    "refused: its pinned packages cannot be installed next to ours",
    (
        Unsupported(
            reason="RegionE 0.1.0 cannot be installed next to this package (it pins transformers 4.55.4, and 5.17 is "
            "needed here), and it calls flash-attn, which it does not install; measure it in an environment of its own"
        ),
    ),
    source="https://github.com/Peyton-Chen/RegionE",
)
