"""The settings of a server, as pure, frozen, validated data; `kontext serve` reads them from flags, environment and
file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations import DEFAULT_PRESET

_LORA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST_NAME = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")

MIB = 2**20


class LoraFile(BaseModel):
    """A LoRA that requests may name."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path
    strength: float = 1.0


class ServerSettings(BaseModel):
    """Raises InvalidInput on creation where a value cannot be right on any machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    checkpoint: str = "tiny"
    presets: Annotated[tuple[str, ...], Field(min_length=1)] = (DEFAULT_PRESET,)
    """Those that requests may name; the first one is what runs where none is named."""
    loras: tuple[LoraFile, ...] = ()
    devices: tuple[str, ...] = ()
    """One worker on each; empty: every GPU, or the CPU."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each worker; None leaves the choice to torch."""
    worker_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Host memory that each worker may take; None: no limit."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 28
    guidance: Annotated[float, Field(ge=0)] = 2.5
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 100
    max_images: Annotated[int, Field(ge=1, le=10)] = 4
    """Images of one request."""
    max_enlargement: Annotated[float, Field(ge=1)] = 2.0
    """Side of the largest output, in sides of the square that the checkpoint was trained at."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Images that may run together."""
    batch_pixels: Annotated[int, Field(ge=1)] = 512 * 512
    """Only outputs of at most so many pixels are grouped: larger ones gain nothing from it."""
    queue: Annotated[int, Field(ge=1)] = 32
    """Requests that may wait."""
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest time in queue and worker together; a request may ask for less."""
    stall_s: Annotated[float, Field(gt=0)] = 300.0
    """A worker that reports no step for this long is replaced; longer than any compilation of a new size."""
    grace_s: Annotated[float, Field(ge=0)] = 60.0
    """After SIGTERM, how long running requests may still take."""
    max_upload_mib: Annotated[float, Field(gt=0)] = 50.0
    upload_s: Annotated[float, Field(gt=0)] = 60.0
    """How long the body of a request may take to arrive."""
    max_input_megapixels: Annotated[float, Field(gt=0)] = 32.0
    url_hosts: tuple[str, ...] = ()
    """Hosts that images may be fetched from; empty: none is fetched."""
    api_keys: tuple[SecretStr, ...] = ()
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    """Names by which a server on loopback may be addressed, besides those of loopback."""
    verifications: tuple[Path, ...] = ()
    """Folders of `kontext verify`, whose verdicts are shown."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
            message = first["msg"].removeprefix("Value error, ")
            raise InvalidInput(f"The setting {name} cannot be used: {message}.") from None

    @field_validator("presets")
    @classmethod
    def _presets_differ(cls, presets: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(presets)) < len(presets):
            raise ValueError("a preset is named twice; name each once")
        return presets

    @field_validator("loras", mode="before")
    @classmethod
    def _parse_loras(cls, loras: tuple[str | LoraFile, ...]) -> tuple[LoraFile, ...]:
        parsed = tuple(lora if isinstance(lora, LoraFile) else parse_lora(lora) for lora in loras)
        if len({lora.name for lora in parsed}) < len(parsed):
            raise ValueError("two LoRAs have the same name; write NAME=PATH with names of your choice")
        return parsed

    @field_validator("url_hosts")
    @classmethod
    def _are_host_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST_NAME.fullmatch(host):
                raise ValueError(f"{host!r} is not the name of a host; write for example images.example.com")
        return hosts

    @field_validator("api_keys")
    @classmethod
    def _keys_are_long(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("an API key has fewer than 16 letters, or others than printable ASCII; make it longer")
        return keys

    @property
    def on_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")


def parse_lora(text: str) -> LoraFile:
    """Read "[NAME=]PATH[:STRENGTH]"; without a name, the file's name without its ending. Raises ValueError."""
    name, separator, rest = text.partition("=")
    if not separator:
        name, rest = "", text
    path, colon, strength = rest.rpartition(":")
    try:
        parsed = LoraFile(name=name, path=Path(path), strength=float(strength)) if colon and path else None
    except ValueError:
        parsed = None
    if parsed is None:
        parsed = LoraFile(name=name, path=Path(rest))
    if not name:
        parsed = parsed.model_copy(update={"name": parsed.path.stem})
    if not _LORA_NAME.fullmatch(parsed.name):
        raise ValueError(f"{parsed.name!r} cannot name a LoRA; write NAME=PATH with letters, digits, '.', '_' or '-'")
    return parsed
