"""Presets, which are named choices of optimizations as pure data, and their plans.

Names without a prefix are built in. Those with the prefix `peer:` are recipes of other projects, which
`kontext_fast.bench.peers` defines; both are the same class. `resolve` makes the plan of one: for a machine and a
checkpoint, checked whole before anything changes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kontext_fast.discovery import unknown_name
from kontext_fast.errors import InvalidInput, Refused
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.registry import discover
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.load import is_full_size, kind_of
from kontext_fast.records.names import ONLY, Ablation, parse_ablation
from kontext_fast.records.schema import AppliedOptimization

if TYPE_CHECKING:
    from kontext_fast.engine.ops import Precision

_DIFFUSERS = "https://github.com/huggingface/diffusers"

PEAK_GIB: Final[Mapping[str, int]] = {
    "faithful": 42,
    "classic": 40,
    "precise": 38,
    "baseline": 36,
    "balanced": 36,
    "fast": 36,
    "turbo": 36,
    "low_memory": 22,
}
"""GPU memory that each preset needs on FLUX.1-Kontext-dev: the peak of the whole process, from loading in bfloat16 to
an edit at 1024x1024, rounded up. From results/h100/2026-11-25-card, 2026-11-26-card-precise, 2026-11-26-presets,
2026-11-27-presets and 2026-11-27-presets-2; of low_memory from results/h100/2026-11-25-checks, where it ran in a
process that was given no more."""

FP8_WEIGHTS_GIB: Final = 12
"""What an engine that holds its weights in both precisions has beside those of `faithful`: 11.9 GB in fp8, and what
rounding them takes for a moment."""

HOST_MODULATIONS_GIB: Final = 14
"""What an engine in 8 bits needs whose modulations and text encoders are in host memory: 12.5 GiB were in use on the
GPU after two edits (results/h100/2026-11-26-checks/low_memory_16.json, the context of CUDA included), and a margin of
1 GiB for a display and for what other drivers hold, rounded up."""

FALLBACKS: Final = ("faithful", "baseline", "low_memory", "low_memory(modulations=host)")
"""Suggested instead of a preset that does not fit: the first one that does. Only the last two are lossy."""

H100_SECONDS: Final[Mapping[str, float]] = {
    "baseline": 10.9,
    "faithful": 7.48,
    "balanced": 5.26,
    "fast": 2.11,
    "turbo": 1.73,
}
"""Of an edit at 1024x1024 in 28 steps with random weights, as docs/results.md has it."""

H100_DATES: Final = "2026-11-25 to 2026-11-27"

_REPLACED = re.compile(r"([^()]+)\((.+)\)")
_PARAMETER = re.compile(r"\s*(\w+)\s*=\s*(\([^)]*\)|[^,()]+)(?:,|$)")


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
    on_cuda: tuple[Optimization, ...] = ()
    """Added where the pipeline runs on CUDA: exact, and made to take time away there, so that nothing but time is
    missing elsewhere."""
    source: str | None = None
    """URL where the recipe is published; None for a preset of this package."""

    @property
    def parts(self) -> tuple[Optimization, ...]:
        """All that it may apply, on any machine."""
        return (*self.optimizations, *self.optional, *self.on_cuda)

    @property
    def fitted_to(self) -> str | None:
        """The checkpoint whose weights alone it accepts, as its file names it; None for one that runs on all."""
        fits = [fit for part in self.optimizations if (fit := getattr(part, "fitted_for", None)) is not None]
        return fits[0].checkpoint if fits else None

    def replace(self, **parameters: Any) -> Preset:
        """The same with other parameters of its optimizations, as in `PRESETS["turbo"].replace(computed=5)`.

        Raises InvalidInput for a parameter that none of them has, or a value that one refuses.
        """
        known = {name for part in self.parts for name in type(part).model_fields}
        for name in parameters:
            if name == "gpus" and name not in known:
                raise InvalidInput(
                    f"{self.name} has no engine, which alone computes one edit on several GPUs; use the preset "
                    "faithful, balanced or another one that has it."
                )
            if name not in known:
                raise InvalidInput(unknown_name(f"parameter of {self.name}", name, sorted(known)))
        changed = ",".join(f"{name}={value}" for name, value in parameters.items())
        return declare_preset(
            f"{self.name}({changed})",
            self.summary,
            tuple(_with(part, parameters) for part in self.optimizations),
            tuple(_with(part, parameters) for part in self.on_cuda),
            optional=tuple(_with(part, parameters) for part in self.optional),
            source=self.source,
        )


def needed_gib(preset: str, optimizations: Sequence[Optimization]) -> int | None:
    """GPU memory that `preset` needs on FLUX.1-Kontext-dev; None where nothing is known of it.

    One that was not measured itself needs what the measured preset with its engine needs, and both precisions more.
    """
    if preset in PEAK_GIB:
        return PEAK_GIB[preset]
    parameters = {optimization.name: optimization.parameters() for optimization in optimizations}
    if (engine := parameters.get("engine")) is None:
        return None
    if engine["precision"] != "bf16" and (engine.get("full_precision") or engine.get("originals") == "device"):
        return PEAK_GIB["faithful"] + FP8_WEIGHTS_GIB
    if "offload" in parameters and engine["precision"] != "bf16":
        return HOST_MODULATIONS_GIB if engine.get("modulations") == "host" else PEAK_GIB["low_memory"]
    return PEAK_GIB["faithful" if engine["precision"] == "bf16" else "balanced"]


def _with(optimization: Optimization, parameters: Mapping[str, Any]) -> Optimization:
    own = {name: value for name, value in parameters.items() if name in type(optimization).model_fields}
    # Defaults are left out, since a value may exclude that of another parameter.
    given = {name: getattr(optimization, name) for name in optimization.model_fields_set}
    return type(optimization)(**{**given, **own}) if own else optimization


def declare_preset(
    name: str,
    summary: str,
    optimizations: tuple[Optimization, ...],
    on_cuda: tuple[Optimization, ...] = (),
    *,
    optional: tuple[Optimization, ...] = (),
    source: str | None = None,
) -> Preset:
    """A preset with the variant for random weights that its optimizations declare."""
    variant = tuple(optimization.on_random_weights() for optimization in optimizations)
    on_random = variant if variant != optimizations else None
    return Preset(name, summary, optimizations, on_random, optional, on_cuda, source)


def faster_presets() -> str:
    """What the faster presets bring and how to check what they cost, as one line for people."""
    faster = {name: H100_SECONDS["faithful"] / H100_SECONDS[name] for name in ("balanced", "fast")}
    factors = ", ".join(f"{name} {factor:.1f}x" for name, factor in faster.items())
    names = ",".join(faster)
    return (
        f"Faster than faithful, but lossy: {factors} (H100, 1024x1024, 28 steps); check them on your weights with: "
        f"kontext verify --preset {names} --dataset DIR"
    )


def find_preset(name: str, known: Mapping[str, Preset] | None = None) -> Preset:
    """The preset `name` of `known` (None: those that are built in), or the variant of one that `name` describes.

    Names of ablations are `classic-only-compile` and `classic-without-compile`; `turbo(computed=5)` has another value
    of a parameter. A name that ends in .toml is the path of a preset file. Raises InvalidInput for any other.
    """
    if name.endswith(".toml"):
        from pathlib import Path

        from kontext_fast.optimizations.preset_file import read_preset

        return declare_preset(*read_preset(Path(name), PRESETS))
    known = PRESETS if known is None else known
    if name in known:
        return known[name]
    if (replaced := _REPLACED.fullmatch(name)) is not None:
        return find_preset(replaced[1], known).replace(**_parameters(replaced[2]))
    ablation = parse_ablation(name)
    if ablation is None or ablation.preset not in known:
        raise InvalidInput(unknown_name("preset", name, known))
    whole = known[ablation.preset]
    if ablation.optimization not in {optimization.name for optimization in whole.parts}:
        raise InvalidInput(f"The preset {whole.name} has no optimization {ablation.optimization!r} to ablate.")
    # Alone, what is added on CUDA is asked for by its name, and so runs anywhere.
    added = whole.on_cuda if ablation.kind == ONLY else ()
    return Preset(
        name=name,
        summary=f"{whole.summary}: {ablation.kind.strip('-')} {ablation.optimization}",
        optimizations=_ablated((*whole.optimizations, *added), ablation),
        on_random=None if whole.on_random is None else _ablated((*whole.on_random, *added), ablation),
        optional=_ablated(whole.optional, ablation),
        on_cuda=() if added else _ablated(whole.on_cuda, ablation),
        source=whole.source,
    )


def _parameters(text: str) -> dict[str, Any]:
    """Of `computed=5,order=0`, as `Preset.replace` writes them in a name. Raises InvalidInput."""
    if not re.fullmatch(f"(?:{_PARAMETER.pattern})+", text):
        raise InvalidInput(f"The parameters {text!r} are not NAME=VALUE; write for example turbo(computed=5).")
    parameters: dict[str, Any] = {}
    for name, value in _PARAMETER.findall(text):
        try:
            parameters[name] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            parameters[name] = value.strip()
    return parameters


def _ablated(optimizations: Iterable[Optimization], ablation: Ablation) -> tuple[Optimization, ...]:
    only = ablation.kind == ONLY
    return tuple(optimization for optimization in optimizations if (optimization.name == ablation.optimization) == only)


def with_required(optimization: Optimization) -> tuple[Optimization, ...]:
    """`optimization` after what it requires, all with default parameters."""
    known = discover()
    required = [needed for name in sorted(optimization.requires) for needed in with_required(known[name]())]
    return (*required, optimization)


def _classic() -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.compile import Compile
    from kontext_fast.optimizations.techniques.first_block_cache import FirstBlockCache
    from kontext_fast.optimizations.techniques.fuse_qkv import FuseQKV
    from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast

    return (FuseQKV(), ChannelsLast(), FirstBlockCache(), Compile())


def _on_the_engine(precision: Precision) -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.engine import Engine
    from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast, FusedVae

    return (Engine(precision=precision), ChannelsLast(), FusedVae())


def _fp8_with_one_step_in(every: int) -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.step_reuse import StepReuse

    return (*_on_the_engine("fp8"), StepReuse(computed=every))


def _low_memory() -> tuple[Optimization, ...]:
    from kontext_fast.optimizations.techniques.offload import Offload

    return (*_on_the_engine("fp8"), Offload())


def _around_the_transformer(optimizations: Sequence[Optimization]) -> tuple[Optimization, ...]:
    """What the combination `optimizations` has on CUDA besides: nothing where it is a recipe of others."""
    from kontext_fast.optimizations.techniques.device_pixels import DevicePixels
    from kontext_fast.optimizations.techniques.text_graphs import TextGraphs

    names = {optimization.name for optimization in optimizations}
    if "engine" not in names:
        return ()
    return (DevicePixels(),) if "offload" in names else (TextGraphs(), DevicePixels())


_COMBINATIONS: Final[Mapping[str, tuple[str, Callable[[], tuple[Optimization, ...]]]]] = {
    "classic": ("the four classic techniques together", _classic),
    "faithful": ("our own forward in the checkpoint's precision", lambda: _on_the_engine("bf16")),
    "precise": ("our own forward in rotated int8, every step in full", lambda: _on_the_engine("int8")),
    "balanced": ("our own forward in fp8, every step in full", lambda: _on_the_engine("fp8")),
    "fast": ("fp8, every third step computed", lambda: _fp8_with_one_step_in(3)),
    "low_memory": ("balanced, with the text encoders in host memory", _low_memory),
    "turbo": ("fp8, every fourth step computed", lambda: _fp8_with_one_step_in(4)),
}
"""Schedules are functions of the number of steps, and come from the study in docs/engine.md."""


_FITTED: Final = ("tuned-10", "tuned-7")
"""Preset files in `fitted`, which `kontext tune` wrote for `tiny`. They run on `random`, too, for their time alone."""


class _BuiltIn(MutableMapping[str, Preset]):
    """Presets are built when they are first looked up, so that each imports its own techniques only."""

    def __init__(self) -> None:
        baseline = Preset("baseline", "the pipeline as diffusers runs it", (), source=_DIFFUSERS)
        self._presets = {baseline.name: baseline}

    def __getitem__(self, name: str) -> Preset:
        if name not in self._presets:
            if name in _COMBINATIONS:
                summary, build = _COMBINATIONS[name]
                optimizations = build()
                on_cuda = _around_the_transformer(optimizations)
                self._presets[name] = declare_preset(name, summary, optimizations, on_cuda)
            elif name in _FITTED:
                from pathlib import Path

                from kontext_fast.optimizations.preset_file import read_preset

                _, summary, fitted, on_cuda = read_preset(Path(__file__).with_name("fitted") / f"{name}.toml", ())
                self._presets[name] = declare_preset(name, summary, fitted, on_cuda)
            else:
                technique = discover()[name]
                self._presets[name] = declare_preset(name, technique.summary, with_required(technique()))
        return self._presets[name]

    def __setitem__(self, name: str, preset: Preset) -> None:
        self._presets[name] = preset

    def __delitem__(self, name: str) -> None:
        del self._presets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(("baseline", *discover(), *_COMBINATIONS, *_FITTED, *self._presets)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


PRESETS: Final = _BuiltIn()
"""`baseline`, one per optimization, which has its name and what it requires, and the combinations and files above."""


@dataclass(frozen=True)
class Plan:
    """What will be applied, in order."""

    preset: str
    optimizations: tuple[Optimization, ...]
    labels: tuple[str, ...] = ()
    """Labels that must be shown with every number of a run of this plan."""

    @property
    def applied(self) -> tuple[AppliedOptimization, ...]:
        """The plan as a record stores it."""
        return tuple(
            AppliedOptimization(
                name=optimization.name,
                effect=optimization.effect.value,
                parameters=optimization.parameters(),
                revision=optimization.revision,
            )
            for optimization in self.optimizations
        )

    @property
    def content_hash(self) -> str:
        """Sha256 of what is applied, in order, with all parameters; the preset's name does not count."""
        content = [applied.model_dump(mode="json") for applied in self.applied]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def in_host_memory(self) -> bool:
        """Whether to load the pipeline into host memory, since the plan moves what runs to the device."""
        return any(optimization.in_host_memory for optimization in self.optimizations)


def resolve(
    preset: str | Preset | Sequence[Optimization], machine: Machine, *, architecture_only: bool = False
) -> Plan:
    """The plan of `preset` (a name, a Preset or a list of optimizations) for `machine`.

    `architecture_only`: the weights are random, so a preset's variant for random weights is used and labelled.
    What a preset has as optional and this hardware cannot run is left out, and a label says so; what it has on CUDA is
    in the plan there and nowhere else.
    Raises InvalidInput for an unknown name, for conflicts and for what is missing, Refused if only the machine is in
    the way; the message holds every reason at once.
    """
    whole = _preset(preset)
    on_random = whole.on_random if architecture_only else None
    left_out = {
        optimization.name: reason
        for optimization in whole.optional
        if (reason := optimization.hardware_refusal(machine)) is not None
    }
    chosen = (
        *(whole.optimizations if on_random is None else on_random),
        *(optimization for optimization in whole.optional if optimization.name not in left_out),
        *(whole.on_cuda if machine.device == "cuda" else ()),
    )
    chosen = tuple(optimization.on_machine(machine) for optimization in chosen)
    impossible = [*_repetitions(chosen), *_missing(chosen), *_conflicts(chosen)]
    # Two optimizations may have the same reason.
    refused = list(
        dict.fromkeys(reason for optimization in chosen if (reason := optimization.refusal(machine)) is not None)
    )
    if impossible:
        raise InvalidInput(f"The preset {whole.name} cannot be applied: {'; '.join([*impossible, *refused])}.")
    if refused:
        raise Refused(f"The preset {whole.name} is refused on this machine: {'; '.join(refused)}.")
    labels = [optimization.label(architecture_only=architecture_only) for optimization in chosen]
    labels += [optimization.label_on(machine) for optimization in chosen]
    labels += [f"without {name} of its recipe: {reason}" for name, reason in left_out.items()]
    return Plan(
        preset=whole.name,
        optimizations=tuple(sorted(chosen, key=lambda optimization: optimization.phase)),
        labels=tuple(label for label in labels if label is not None),
    )


def resolve_for(checkpoint: str, preset: str | Preset, machine: Machine) -> Plan:
    """As `resolve`, for a checkpoint that is not loaded yet, as a user names it.

    Raises what `resolve` raises, Refused too if the GPU has too little memory, and CheckpointUnavailable.
    """
    plan = resolve(preset, machine, architecture_only=kind_of(checkpoint).random_weights)
    if is_full_size(checkpoint):
        require_memory(plan, machine)
    return plan


def require_memory(plan: Plan, machine: Machine) -> None:
    """Raise Refused where `memory_refusal` has a reason."""
    if (reason := memory_refusal(plan.preset, machine, plan.optimizations)) is not None:
        raise Refused(reason)


def memory_refusal(preset: str, machine: Machine, optimizations: Sequence[Optimization] = ()) -> str | None:
    """Why this machine's GPU is too small for `preset` on FLUX.1-Kontext-dev, as a sentence, or None.

    A preset that was not measured by itself is judged by its `optimizations`.
    """
    needed, memory_gib = needed_gib(preset, optimizations), machine.memory_bytes / 2**30
    if machine.device != "cuda" or needed is None or memory_gib >= needed:
        return None
    smaller = preset_that_fits(machine)
    remedy = (
        f"use --preset {shlex.quote(smaller)}"
        if smaller
        else "no preset fits, so use a larger card or the checkpoint tiny"
    )
    return (
        f"The preset {preset} needs {needed} GiB of GPU memory for FLUX.1-Kontext-dev and this card has "
        f"{memory_gib:.0f}: {remedy}."
    )


def preset_that_fits(machine: Machine) -> str | None:
    """The first preset of FALLBACKS that this GPU can run on FLUX.1-Kontext-dev, or None."""
    for name in FALLBACKS:
        optimizations = find_preset(name).optimizations
        can_run = all(optimization.refusal(machine) is None for optimization in optimizations)
        needed = needed_gib(name, optimizations)
        if can_run and needed is not None and machine.memory_bytes >= needed * 2**30:
            return name
    return None


def _preset(preset: str | Preset | Sequence[Optimization]) -> Preset:
    if isinstance(preset, str):
        return find_preset(preset)
    if isinstance(preset, Preset):
        return preset
    optimizations = tuple(preset)
    if not all(isinstance(optimization, Optimization) for optimization in optimizations):
        raise InvalidInput("Pass the name of a preset, a Preset or a list of optimizations.")
    return Preset("+".join(optimization.name for optimization in optimizations) or "baseline", "", optimizations)


def _repetitions(chosen: Sequence[Optimization]) -> Iterator[str]:
    for name, count in Counter(optimization.name for optimization in chosen).items():
        if count > 1:
            yield f"{name} is in the list {count} times, keep one"


def _missing(chosen: Sequence[Optimization]) -> Iterator[str]:
    names = {optimization.name for optimization in chosen}
    for optimization in chosen:
        if missing := sorted(optimization.requires - names):
            name = optimization.name
            yield f"{name} needs {' and '.join(missing)}, add it to the list or use the preset {name}"


def _conflicts(chosen: Sequence[Optimization]) -> Iterator[str]:
    names = {optimization.name for optimization in chosen}
    for optimization in chosen:
        for conflict in optimization.conflicts:
            if conflict.other in names and all(
                getattr(optimization, key) == value for key, value in conflict.when.items()
            ):
                yield f"{conflict.between(optimization.name)} exclude each other, {conflict.because}"
