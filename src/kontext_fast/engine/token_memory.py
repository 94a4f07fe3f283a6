"""Keys and values of tokens that do not run at every step.

Tokens are ordered so that those which run, the active set, come first: text, image, reference. A step writes query,
key and value of its active tokens; the others take part in attention with the keys and values they had when they last
ran, after norm and rotation. What can be inactive is a matter of what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from kontext_fast.engine.ops import JointQKV


class Keep(StrEnum):
    """Whose keys and values outlive their step."""

    NOTHING = "nothing"
    """No token's: every step runs all tokens. One set of buffers serves all blocks."""
    REFERENCE = "reference"
    """The reference tokens', per block: 2.9 GB at full size in bf16, and one copy of them per block and step."""
    ALL = "all"
    """All tokens', per block: 6.1 GB at full size in bf16, nothing is copied, and any tokens can be inactive."""


@dataclass(frozen=True)
class Layout:
    """Numbers of tokens, in the order of the buffers."""

    text: int
    image: int
    """Tokens of the image that is made: those with an output."""
    reference: int

    @property
    def output_end(self) -> int:
        return self.text + self.image

    @property
    def total(self) -> int:
        return self.text + self.image + self.reference


class TokenMemory:
    """The joint buffers of one pass of one request, allocated once."""

    def __init__(
        self,
        keep: Keep,
        layout: Layout,
        *,
        blocks: int,
        batch: int,
        heads: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`heads`: how many, and channels of each."""

        def buffer(count: int, tokens: int) -> torch.Tensor:
            return torch.empty(count, batch, tokens, *heads, dtype=dtype, device=device)

        self.keep = keep
        self._layout = layout
        self._query = buffer(1, layout.total)[0]
        self._shared = buffer(0 if keep is Keep.ALL else 2, layout.total)
        held = {Keep.NOTHING: 0, Keep.REFERENCE: layout.reference, Keep.ALL: layout.total}[keep]
        self._held = [buffer(2, held) for _ in range(blocks if held else 0)]
        self._refreshed = [False] * batch

    def first_that_may_rest(self) -> int:
        """Tokens from this one on can be inactive."""
        return {Keep.NOTHING: self._layout.total, Keep.REFERENCE: self._layout.output_end, Keep.ALL: 0}[self.keep]

    def refreshed(self, samples: slice) -> bool:
        """Whether every one of `samples` has run all of its tokens."""
        return all(self._refreshed[samples])

    def note_refresh(self, samples: slice) -> None:
        """A step of `samples` ran all tokens to its end."""
        self._refreshed[samples] = [True] * len(self._refreshed[samples])

    def joint(self, block: int, samples: slice) -> JointQKV:
        """Where `block` writes the active tokens of `samples`."""
        key, value = self._held[block] if self.keep is Keep.ALL else self._shared
        return JointQKV(self._query[samples], key[samples], value[samples])

    def settle(self, block: int, active: int, samples: slice) -> None:
        """Complete the buffers of `block` after its first `active` tokens were written."""
        if self.keep is not Keep.REFERENCE or not self._layout.reference:
            return
        shared, held = self._shared[:, samples, self._layout.output_end :], self._held[block][:, samples]
        if active == self._layout.total:
            held.copy_(shared)
        else:
            shared.copy_(held)
