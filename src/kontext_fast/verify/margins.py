"""The margins of a verification: pure, validated data from a TOML file, with a content hash."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kontext_fast.errors import InvalidInput
from kontext_fast.records.store import content_hash
from kontext_fast.toml_lines import TOMLDecodeError, parse_toml
from kontext_fast.validation import dotted, first_mistake

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0.5, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FloorMargins(_Table):
    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    worst: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    min_items: Annotated[int, Field(ge=2)]


class NoiseMargins(_Table):
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    median: Positive
    p90: Positive


class TailMargins(_Table):
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.005


class Margins(_Table):
    """The largest changes that count as no loss; `margins.toml` explains each value."""

    confidence: Probability
    power: Probability
    min_items: Annotated[int, Field(ge=2)]
    floor: FloorMargins
    primary: Annotated[dict[str, Positive], Field(min_length=1)]
    seed_noise: NoiseMargins
    tail: TailMargins = TailMargins()
    """Files and records without it are of the time before it."""

    def stricter(self, tests: int) -> Margins:
        """The margins with the confidence that each of so many tests needs to hold the level together."""
        return self.model_copy(update={"confidence": 1 - (1 - self.confidence) / tests})

    @property
    def sha256(self) -> str:
        return content_hash(self.model_dump(mode="json"))


def read_margins(file: Path | None = None) -> Margins:
    """The margins in `file`, or those of the package. Raises InvalidInput, naming what is wrong."""
    source = file or resources.files("kontext_fast.verify") / "margins.toml"
    try:
        return Margins.model_validate(parse_toml(source.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(f"The margins {file} cannot be read; give an existing TOML text file.") from None
    except TOMLDecodeError as error:
        raise InvalidInput(f"{source.name} is not valid TOML: {error}.") from None
    except ValidationError as error:
        location, message = first_mistake(error)
        raise InvalidInput(f"{source.name}: {dotted(location)}: {message}.") from None
