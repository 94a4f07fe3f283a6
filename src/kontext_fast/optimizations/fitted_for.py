"""What a solver was fitted to, and what must be said of weights and calls that are others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.weight_identity import WeightIdentity, identity_of
from kontext_fast.records.schema import Mode

Target = Literal["converged", "steps"]
"""What the results of a fit come near to: `converged`, where the model's differential equation leads; or `steps`, the
images of as many Euler steps as a call asks for."""

GUIDANCE_AROUND = 1.5
"""How far from the guidance of a fit nothing is lost: on `tiny`, fits at 2.5 came as near at 1, 1.5, 2, 3 and 4,
relative to plain steps, as at 2.5."""


class FittedFor(BaseModel):
    """Weights and calls of a fit. Pure, frozen data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    checkpoint: str
    """As messages name it; never a path."""
    weights: WeightIdentity
    """Of the transformer, with its LoRAs merged in."""
    loras: tuple[str, ...] = ()
    target: Target
    steps: Annotated[int, Field(ge=1)]
    """What a call asks for, which the solver's evaluations stand for."""
    guidance: tuple[float, float]
    """Lowest and highest."""
    mode: Mode = "edit"
    sizes: tuple[str, ...] = ()
    """Output sizes, "WIDTHxHEIGHT" in pixels; empty where nothing is known of them."""

    def cautions_about_weights(self, transformer: Any) -> Iterator[str]:
        """What must be said of `transformer` at every call. Raises InvalidInput if it is another model."""
        weights = identity_of(transformer)
        if self.weights.differs(weights):
            raise InvalidInput(
                f"This solver was fitted to {self.checkpoint}, and these are other weights; fit one to them with "
                "kontext tune, or use a preset without a solver."
            )
        if weights != self.weights:
            loras = f" with {' and '.join(self.loras)}" if self.loras else " without a LoRA"
            yield (
                f"The solver was fitted to {self.checkpoint}{loras}; these weights have another LoRA or none, so how "
                "near it comes was not measured: fit it to them with kontext tune."
            )

    def cautions_about_call(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """What must be said of a call of the pipeline with these arguments, by name."""
        steps, guidance = arguments.get("num_inference_steps"), arguments.get("guidance_scale")
        if steps is not None and steps != self.steps:
            yield f"The solver stands for {self.steps} steps, and {steps} were asked for; it runs as it was fitted."
        lowest, highest = self.guidance
        if guidance is not None and not lowest - GUIDANCE_AROUND <= guidance <= highest + GUIDANCE_AROUND:
            fitted = f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}"
            yield (
                f"The solver was fitted at guidance {fitted} and runs at {guidance:g}, where how near it comes was not "
                "measured."
            )
        mode: Mode = "edit" if arguments.get("image") is not None else "text-to-image"
        if mode != self.mode:
            article = {"edit": "edits", "text-to-image": "text-to-image"}
            words = f"fitted to {article[self.mode]} and runs {article[mode]}"
            yield f"The solver was {words}, where it comes much less near."
        if _has_true_cfg(arguments):
            yield "The solver was fitted without true CFG and runs with it, where how near it comes was not measured."
        if self.sizes and (size := _size(arguments)) is not None and size not in self.sizes:
            sizes = ", ".join(self.sizes)
            yield f"The solver was fitted at {sizes} and runs at {size}, where how near it comes was not measured."


def _has_true_cfg(arguments: Mapping[str, Any]) -> bool:
    negative = arguments.get("negative_prompt") is not None or arguments.get("negative_prompt_embeds") is not None
    return negative and (arguments.get("true_cfg_scale") or 1) > 1


def _size(arguments: Mapping[str, Any]) -> str | None:
    """The size that a call names; None where it leaves that to the pipeline."""
    width, height = arguments.get("width"), arguments.get("height")
    if width is None or height is None:
        return None
    area = arguments.get("max_area") or width * height
    # As the pipeline rounds it.
    sides = (round((area * width / height) ** 0.5), round((area * height / width) ** 0.5))
    return "x".join(str(side // 16 * 16) for side in sides)
