"""The contract of an optimization: one technique, one file, applied to a pipeline and reverted from it.

A module in this package that defines a public `Optimization` subclass is discovered by `discover()`; nothing
else has to be edited. Modules import torch and diffusers inside functions, so that listing costs no import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from kontext_fast.errors import InvalidInput
from kontext_fast.validation import complaint

if TYPE_CHECKING:
    from kontext_fast.pipeline.device import Machine

Facts = dict[str, Any]
"""What an applied technique reports, JSON-ready; the values may change after each call."""


class Effect(StrEnum):
    """What an optimization does to the output."""

    EXACT = "exact"
    """Bit-identical."""
    NUMERIC = "numeric"
    """Differs by rounding only."""
    LOSSY = "lossy"
    """Approximates; a quality verdict has to show what that costs."""


class Phase(IntEnum):
    """Where in a plan an optimization is applied; plans are sorted by it."""

    SCHEDULE = 5
    """Decides which noise levels run; sees the weights as they were loaded."""
    WEIGHTS = 10
    """Rewrites or fuses weights."""
    LAYOUT = 20
    """Changes memory layout."""
    KERNELS = 25
    """Replaces operations by fused ones that want that layout."""
    STEPS = 30
    """Decides which parts of a step run."""
    COMPILE = 40
    """Compiles the modules, so it must see them as all others leave them."""
    REQUESTS = 50
    """Caches what a call computes before its steps; changes no module."""


@dataclass(frozen=True)
class Conflict:
    """Another optimization that cannot be in the same plan."""

    other: str
    """Its name."""
    because: str
    """Why, and what to choose instead."""
    when: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the declaring side under which the conflict exists; empty means always."""

    @property
    def condition(self) -> str:
        """`when` in words that follow a name, e.g. ` (mode=whole)`; empty where the conflict exists always."""
        return f" ({', '.join(f'{name}={value}' for name, value in self.when.items())})" if self.when else ""

    def between(self, declaring: str) -> str:
        """The pair in words, e.g. `compile (mode=whole) and first_block_cache`."""
        return f"{declaring}{self.condition} and {self.other}"


class Optimization(BaseModel, ABC):
    """One technique with its parameters (the model's fields). Pure, frozen data until `apply` is called.

    Raises InvalidInput when built with an unknown or impossible parameter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The word used in presets, records and the CLI."""
    summary: ClassVar[str]
    """One line for people."""
    effect: ClassVar[Effect]
    """A property where it depends on the parameters."""
    revision: ClassVar[int] = 1
    """Raised by a change of the code after which the same parameters give other numbers or other times: what records
    say of an earlier revision is not said of this one."""
    phase: ClassVar[Phase]
    conflicts: ClassVar[tuple[Conflict, ...]] = ()
    """Declared on one side of a pair only; the planner checks both directions."""
    requires: ClassVar[frozenset[str]] = frozenset()
    """Names of the optimizations that must be in the same plan and are applied before, in an earlier phase."""
    in_host_memory: ClassVar[bool] = False
    """Whether the pipeline should be loaded into host memory, since it moves the weights that run to the device."""
    exchangeable: ClassVar[bool] = False
    """Whether it can be put on and taken off between two calls at no cost: it changes no weights and compiles nothing.
    It is applied after everything that cannot."""
    extra: ClassVar[tuple[str, str] | None] = None
    """A module that must be importable, and the extra of this package that installs it; None where it needs none."""

    def __init__(self, **parameters: Any) -> None:
        try:
            super().__init__(**parameters)
        except ValidationError as error:
            raise InvalidInput(f"Bad parameters for {type(self).name}: {_complaints(error)}.") from error

    def parameters(self) -> dict[str, Any]:
        """The parameters in use, JSON-ready; the class built from them is equal."""
        return self.model_dump(mode="json")

    def parameters_for_people(self) -> dict[str, Any]:
        """The same as a line for people has room for."""
        return self.parameters()

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """The values of each parameter that has a fixed set of them."""
        return {
            name: get_args(field.annotation)
            for name, field in cls.model_fields.items()
            if get_origin(field.annotation) is Literal
        }

    def on_random_weights(self) -> Optimization:
        """The variant for random weights, on which decisions by data are meaningless."""
        return self

    def on_machine(self, machine: Machine) -> Optimization:
        """The same with every choice made that it leaves to the machine, as a plan records it."""
        return self

    def is_what_ran(self, parameters: Mapping[str, Any]) -> bool:
        """Whether a record with these parameters is one of this optimization."""
        return dict(parameters) == self.parameters()

    def label(self, *, architecture_only: bool) -> str | None:
        """A label for every number of a run with this optimization, or None.

        `architecture_only`: the weights are random, so only speed and memory mean something.
        """
        return None

    def label_on(self, machine: Machine) -> str | None:
        """A label for every number of a run on this machine, or None."""
        return None

    def hardware_refusal(self, machine: Machine) -> str | None:
        """Why the hardware of this machine cannot run it, or None; see `Preset.optional`."""
        return None

    def refusal(self, machine: Machine) -> str | None:
        """Why this machine cannot run it, as one sentence that names the remedy, or None."""
        if (reason := self.hardware_refusal(machine)) is not None:
            return reason
        if self.extra is not None and find_spec(self.extra[0]) is None:
            module, extra = self.extra
            return f"{self.name} needs the package {module}; run `pip install kontext-fast[{extra}]` and try again"
        return None

    def precompile_calls(self, pipe: Any) -> Sequence[Callable[[], object]]:
        """Calls that compile what its first run on `pipe` would; they run in threads while plans are applied.

        They change nothing; `apply` raises what is wrong with `pipe`.
        """
        return ()

    @abstractmethod
    def apply(self, pipe: Any, undo: ExitStack) -> Facts:
        """Change `pipe` and register on `undo` what restores it, bit-identical.

        A partial failure is fine: the caller closes `undo`, so register each undo before or right after its change.
        """


def _complaints(error: ValidationError) -> str:
    complaints = []
    for detail in error.errors(include_url=False):
        # The places after the parameter say which kind of value was tried, and mean nothing to people.
        where = detail["loc"][:1]
        complaints.append(": ".join([*map(str, where), complaint(detail)]))
    return "; ".join(dict.fromkeys(complaints))
