"""The parameters and answers of the API, as data. OpenAI's names, and ours for what OpenAI has not.

Unknown parameters are an error that names them. Those that clients send and that mean nothing here are in `Accepted`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from kontext_fast.records.schema import AppliedOptimization, Checkpoint, StepKind
from kontext_fast.server.images import Format

MOST_IMAGES = 10
MOST_PROMPT_CHARACTERS = 32_000
MOST_PREVIEWS = 3
_MOST_SEED = 2**63 - 1 - MOST_IMAGES

UNSUPPORTED: dict[str, str] = {
    "mask": "FLUX.1-Kontext edits by instruction; say in the prompt what to change and what to keep",
    "markup": "say in the prompt what to change",
    "input_fidelity": "the reference is always read in full; leave it out",
    "style": "describe the style in the prompt",
    "complexity": "leave it out",
    "frame_count": "answers are single images; leave it out",
    "frame_duration_ms": "answers are single images; leave it out",
    "svg": "answers are PNG, JPEG or WebP; leave it out",
}
"""Parameters of OpenAI's that are refused by name, and what to do instead."""


class Accepted(BaseModel):
    """What real clients send and what means nothing here."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(description="Any name; there is one model, see /v1/models.")] = None
    user: Annotated[str | None, Field(description="Not used.")] = None
    safety_identifier: Annotated[str | None, Field(description="Not used.")] = None
    response_format: Annotated[Literal["b64_json"] | None, Field(description="Answers are always base64.")] = None
    quality: Annotated[Literal["auto"] | None, Field(description="Choose a `preset` instead.")] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Images are opaque.")] = None
    moderation: Annotated[Literal["auto", "low"] | None, Field(description="Nothing is moderated.")] = None


class ImageParameters(Accepted):
    """The parameters of a generation, and of an edit besides its image."""

    prompt: Annotated[
        str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS, description="What to change, or what to draw.")
    ]
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES, description="Images; each has the next seed.")] = 1
    size: Annotated[
        str, Field(description="`WIDTHxHEIGHT` in multiples of 16, or `auto`.", pattern=r"^(auto|\d{1,5}x\d{1,5})$")
    ] = "auto"
    output_format: Format = "png"
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of JPEG and WebP; 100 where it is left out.")
    ] = None
    stream: Annotated[bool, Field(description="Answer by server-sent events.")] = False
    partial_images: Annotated[
        int, Field(ge=0, le=MOST_PREVIEWS, description="Estimates of each image on the way, with `stream`.")
    ] = 0
    progress: Annotated[bool, Field(description="Also an event for every step, with `stream`. Not OpenAI's.")] = False
    seed: Annotated[int | None, Field(ge=0, le=_MOST_SEED, description="Drawn where it is left out.")] = None
    steps: Annotated[
        int | None,
        Field(ge=1, le=1000, validation_alias=AliasChoices("steps", "num_inference_steps")),
    ] = None
    guidance: Annotated[
        float | None,
        Field(ge=0, le=100, allow_inf_nan=False, validation_alias=AliasChoices("guidance", "guidance_scale")),
    ] = None
    negative_prompt: Annotated[str | None, Field(max_length=MOST_PROMPT_CHARACTERS)] = None
    true_cfg: Annotated[
        float,
        Field(ge=1, le=100, allow_inf_nan=False, validation_alias=AliasChoices("true_cfg", "true_cfg_scale")),
    ] = 1.0
    preset: Annotated[str | None, Field(description="One of /v1/models.")] = None
    lora: Annotated[str | None, Field(description="One of /v1/models.")] = None


_SIDE = "Without it the checkpoint's native side, which is 1024 for FLUX.1-Kontext."


class OriginalRequest(BaseModel):
    """The JSON of the original project's `POST /inference`, with its limits."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS)]
    prompt2: Annotated[str | None, Field(description="Has to equal `prompt`: both encoders read one text.")] = None
    negative_prompt: Annotated[str | None, Field(max_length=MOST_PROMPT_CHARACTERS)] = None
    negative_prompt2: Annotated[str | None, Field(description="Has to equal `negative_prompt`.")] = None
    image_url: Annotated[
        str | None, Field(description="A data URL, or https where the operator allows the host; else text-to-image.")
    ] = None
    true_cfg_scale: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] = 1.0
    height: Annotated[int | None, Field(ge=256, le=1024, multiple_of=16, description=_SIDE)] = None
    width: Annotated[int | None, Field(ge=256, le=1024, multiple_of=16, description=_SIDE)] = None
    steps: Annotated[int, Field(ge=1, le=50)] = 28
    guidance_scale: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] = 3.5
    num_images: Annotated[int, Field(ge=1, le=4)] = 1
    seed: Annotated[int | None, Field(ge=0, le=_MOST_SEED)] = None
    output_format: Literal["PNG", "JPG", "WEBP"] = "PNG"
    output_quality: Annotated[int, Field(ge=1, le=100, description="Of JPG and WEBP.")] = 90


class Verdict(BaseModel):
    """What is known of the images of a preset."""

    level: str | None
    """`L2`; None where nothing was verified."""
    checkpoint: str | None
    """On which it was found."""
    verified_here: bool
    """Whether that was this very checkpoint and this very preset."""
    sentence: str


class Details(BaseModel):
    """What really ran; beside OpenAI's fields."""

    request_id: str
    checkpoint: str
    preset: str
    verdict: Verdict
    lora: str | None
    seed: int
    steps: int
    computed_steps: int
    step_kinds: list[StepKind]
    guidance: float
    true_cfg: float
    width: int
    height: int
    explanation: str
    """How sizes were chosen, in a sentence."""
    queue_s: float
    run_s: float
    preview_s: float
    """What partial images added to `run_s`."""
    lora_swap_s: float
    batch: int
    """Requests that ran together."""
    caution: str | None
    """What must be said of images of such weights."""
    cautions: list[str]
    """What must be said of these images: the preset was tuned for other calls than this one."""


class TokenDetails(BaseModel):
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens of the transformer, in OpenAI's form."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class AnswerImage(BaseModel):
    b64_json: str
    seed: int


class ImagesAnswer(BaseModel):
    """The answer to an edit or a generation."""

    created: int
    data: list[AnswerImage]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    size: str
    usage: Usage
    kontext: Details


class OriginalAnswer(BaseModel):
    """The answer of `POST /inference`; the first three fields are the original's."""

    images: list[str]
    """Data URLs."""
    inference_time: float
    seed: int
    error: None = None
    kontext: Details


class PresetAnswer(BaseModel):
    name: str
    summary: str
    lossy: bool
    labels: list[str]
    verdict: Verdict
    optimizations: list[AppliedOptimization]


class ServiceDetails(BaseModel):
    """What requests may ask for; beside OpenAI's fields of a model."""

    presets: list[PresetAnswer]
    """The first one is the default."""
    loras: list[str]
    steps: int
    guidance: float
    native: int
    text_tokens: int
    max_steps: int
    max_images: int
    max_pixels: int
    deadline_s: float
    caution: str | None
    checkpoint: Checkpoint
    environment: dict[str, Any]


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kontext-fast"
    kontext: ServiceDetails


class ModelsAnswer(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class WorkerAnswer(BaseModel):
    name: str
    state: str
    restarts: int
    busy_s: float
    """Time in which it ran jobs, since the server started."""


class HealthAnswer(BaseModel):
    """The first four fields are the original's."""

    status: Literal["healthy", "starting", "draining"]
    gpu_available: bool
    gpu_name: str | None
    model_loaded: bool
    checkpoint: str | None
    version: str
    waiting: int
    running: int
    expected_wait_s: float | None
    workers: list[WorkerAnswer]


class ProbeAnswer(BaseModel):
    status: str
