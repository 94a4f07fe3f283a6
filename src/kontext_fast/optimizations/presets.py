"""Presets: named choices of optimizations, as pure data, and how a name becomes one.

Names without a prefix are built in. Those with the prefix `peer:` are recipes of other projects, which
`kontext_fast.bench.peers` defines; both are the same class and are resolved by the same `plan.resolve`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kontext_fast.discovery import unknown_name
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.registry import discover
from kontext_fast.records.names import ONLY, Ablation, parse_ablation

if TYPE_CHECKING:
    from kontext_fast.engine.ops import Precision

_DIFFUSERS = "https://github.com/huggingface/diffusers"

PEAK_GIB: Final[Mapping[str, int]] = {
    "faithful": 42,
    "classic": 40,
    "baseline": 36,
    "balanced": 36,
    "fast": 36,
    "turbo": 36,
    "low_memory": 22,
}
"""GPU memory that each preset needs on FLUX.1-Kontext-dev: the peak of the whole process, from loading in bfloat16 to
an edit at 1024x1024, rounded up. From results/h100/2026-11-25-card; of low_memory from results/h100/2026-11-25-checks,
where it ran in a process that was given no more."""

FALLBACKS: Final = ("faithful", "baseline", "low_memory")
"""Suggested instead of a preset that does not fit: the first one that does. Only the last one is lossy."""

TIMES_FAITHFUL: Final[Mapping[str, float]] = {"balanced": 1.4, "fast": 3.4}
"""How many times as fast as `faithful` an edit at 1024x1024 in 28 steps is, on the card of results/h100."""


@dataclass(frozen=True)
class Preset:
    """A named, ordered choice of optimizations with their parameters."""

    name: str
    summary: str
    optimizations: tuple[Optimization, ...]
    on_random: tuple[Optimization, ...] | None = None
    """The variant for random weights, on which decisions by data are meaningless; None: the same."""
    optional: tuple[Optimization, ...] = ()
    """Left out where the hardware cannot run them, which a label of the plan then says."""
    source: str | None = None
    """URL where the recipe is published; None for a preset of this package."""


def declare_preset(
    name: str,
    summary: str,
    optimizations: tuple[Optimization, ...],
    *,
    optional: tuple[Optimization, ...] = (),
    source: str | None = None,
) -> Preset:
    """A preset with the variant for random weights that its optimizations declare."""
    on_random = tuple(optimization.on_random_weights() for optimization in optimizations)
    return Preset(name, summary, optimizations, on_random if on_random != optimizations else None, optional, source)


def faster_presets() -> str:
    """What the faster presets bring and how to check what they cost, as one line for people."""
    factors = ", ".join(f"{name} {factor:g}x" for name, factor in TIMES_FAITHFUL.items())
    names = ",".join(TIMES_FAITHFUL)
    return (
        f"Faster than faithful, but lossy: {factors} (H100, 1024x1024, 28 steps); check them on your weights with: "
        f"kontext verify --preset {names} --dataset DIR"
    )


def find_preset(name: str, known: Mapping[str, Preset] | None = None) -> Preset:
    """The preset `name` of `known` (None: those that are built in), or the ablation of one that `name` describes.

    Names of ablations are `classic-only-compile` and `classic-without-compile`. Raises InvalidInput for any other.
    """
    known = PRESETS if known is None else known
    if name in known:
        return known[name]
    ablation = parse_ablation(name)
    if ablation is None or ablation.preset not in known:
        raise InvalidInput(unknown_name("preset", name, known))
    whole = known[ablation.preset]
    if ablation.optimization not in {optimization.name for optimization in whole.optimizations + whole.optional}:
        raise InvalidInput(f"The preset {whole.name} has no optimization {ablation.optimization!r} to ablate.")
    return Preset(
        name=name,
        summary=f"{whole.summary}: {ablation.kind.strip('-')} {ablation.optimization}",
        optimizations=_ablated(whole.optimizations, ablation),
        on_random=None if whole.on_random is None else _ablated(whole.on_random, ablation),
        optional=_ablated(whole.optional, ablation),
        source=whole.source,
    )


def _ablated(optimizations: Iterable[Optimization], ablation: Ablation) -> tuple[Optimization, ...]:
    only = ablation.kind == ONLY
    return tuple(optimization for optimization in optimizations if (optimization.name == ablation.optimization) == only)


def with_required(optimization: Optimization) -> tuple[Optimization, ...]:
    """`optimization` after what it requires, all with default parameters."""
    known = discover()
    required = [needed for name in sorted(optimization.requires) for needed in with_required(known[name]())]
    return (*required, optimization)


def _classic() -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.channels_last import ChannelsLast
    from kontext_fast.optimizations.techniques.compile import Compile
    from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
    from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV

    return (FuseQKV(), ChannelsLast(), FirstBlockCache(), Compile())


def _on_the_engine(precision: Precision) -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.channels_last import ChannelsLast
    from kontext_fast.optimizations.techniques.engine import Engine
    from kontext_fast.optimizations.techniques.fused_vae import FusedVae

    return (Engine(precision=precision), ChannelsLast(), FusedVae())


def _fp8_with_one_step_in(every: int) -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.step_reuse import StepReuse

    return (*_on_the_engine("fp8"), StepReuse(computed=every))


def _low_memory() -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.offload import Offload

    return (*_on_the_engine("fp8"), Offload())


_COMBINATIONS: Final[Mapping[str, tuple[str, Callable[[], tuple[Optimization, ...]]]]] = {
    "classic": ("the four classic techniques together", _classic),
    "faithful": ("our own forward in the checkpoint's precision", lambda: _on_the_engine("bf16")),
    "balanced": ("our own forward in fp8, every step in full", lambda: _on_the_engine("fp8")),
    "fast": ("fp8, every third step computed", lambda: _fp8_with_one_step_in(3)),
    "low_memory": ("balanced, with the text encoders in host memory", _low_memory),
    "turbo": ("fp8, every fourth step computed", lambda: _fp8_with_one_step_in(4)),
}
"""Schedules are functions of the number of steps, and come from the study in docs/engine.md."""


class _BuiltIn(MutableMapping[str, Preset]):
    """Presets are built when they are first looked up, so that each imports its own techniques only."""

    def __init__(self) -> None:
        baseline = Preset("baseline", "the pipeline as diffusers runs it", (), source=_DIFFUSERS)
        self._presets = {baseline.name: baseline}

    def __getitem__(self, name: str) -> Preset:
        if name not in self._presets:
            if name in _COMBINATIONS:
                summary, optimizations = _COMBINATIONS[name]
                self._presets[name] = declare_preset(name, summary, optimizations())
            else:
                technique = discover()[name]
                self._presets[name] = declare_preset(name, technique.summary, with_required(technique()))
        return self._presets[name]

    def __setitem__(self, name: str, preset: Preset) -> None:
        self._presets[name] = preset

    def __delitem__(self, name: str) -> None:
        del self._presets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(("baseline", *discover(), *_COMBINATIONS, *self._presets)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


PRESETS: Final = _BuiltIn()
"""`baseline`, one per optimization, which has its name and what it requires, and the combinations above."""
