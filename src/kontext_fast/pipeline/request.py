"""What is asked of one edit. A request that exists is valid, as far as that does not depend on the checkpoint."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any

from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.sizes import Size, check_requested_size

MAX_STEPS = 1000
"""The schedule has no more distinct times."""

_SEED_LIMIT = 2**63
_DRAWN_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class EditRequest:
    """One instruction and how to follow it; raises InvalidInput on creation."""

    instruction: str
    image: Any = None
    """Anything that `inputs.to_rgb` takes; None for text-to-image."""
    steps: int = 28
    guidance: float = 2.5
    seed: int | None = None
    """Of the first image of the batch, each further one counts up; None draws one."""
    negative: str | None = None
    true_cfg: float = 1.0
    """Above 1 every step runs the transformer a second time, on `negative`, and moves away from what that gives."""
    size: Size | None = None
    """(width, height) of the output in pixels; None for the native area in the aspect of the input."""
    batch: int = 1
    """Images made of the one instruction."""

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise InvalidInput('The instruction is empty; say what to change, for example "make the car red".')
        if not _is_count(self.steps) or self.steps > MAX_STEPS:
            raise InvalidInput(f"The number of steps is {self.steps}; give a whole number from 1 to {MAX_STEPS}.")
        if not _is_finite(self.guidance) or self.guidance < 0:
            raise InvalidInput(f"The guidance is {self.guidance}; give a number of at least 0, for example 2.5.")
        if not _is_count(self.batch):
            raise InvalidInput(f"The batch is {self.batch}; give a whole number of at least 1.")
        if self.size is not None:
            check_requested_size(self.size)
        self._check_seed()
        self._check_true_cfg()

    def _check_seed(self) -> None:
        if self.seed is None:
            return
        highest = _SEED_LIMIT - self.batch
        if not isinstance(self.seed, int) or not 0 <= self.seed <= highest:
            raise InvalidInput(f"The seed is {self.seed}; give a whole number from 0 to {highest}.")

    def _check_true_cfg(self) -> None:
        if not _is_finite(self.true_cfg) or self.true_cfg < 1:
            raise InvalidInput(f"The true CFG scale is {self.true_cfg}; give a number of at least 1.")
        # The pipeline ignores either one without the other, without a word.
        if self.true_cfg > 1 and self.negative is None:
            raise InvalidInput("A true CFG scale above 1 needs a negative prompt; give one, or leave the scale at 1.")
        if self.negative is not None and self.true_cfg == 1:
            raise InvalidInput("A negative prompt needs a true CFG scale above 1; give one, for example 2.")

    def seeds(self) -> tuple[int, ...]:
        """One seed per image; each call draws anew where none was given."""
        first = secrets.randbelow(_DRAWN_SEED_LIMIT) if self.seed is None else self.seed
        return tuple(range(first, first + self.batch))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
