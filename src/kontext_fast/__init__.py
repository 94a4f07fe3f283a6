"""FLUX.1-Kontext image editing, made fast and measured.

The public names load on first use, so that importing this package costs no import of torch. Beside those of `__all__`,
every optimization is here under the name of its class: `from kontext_fast import Engine, StepReuse`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kontext_fast.version import __version__

if TYPE_CHECKING:
    from kontext_fast.bench.showcase import showcase
    from kontext_fast.optimizations.acceleration import accelerate
    from kontext_fast.optimizations.presets import PRESETS, Preset
    from kontext_fast.pipeline.edit import EditRequest, EditResult, edit
    from kontext_fast.pipeline.edit_many import edit_many
    from kontext_fast.pipeline.load import load
    from kontext_fast.tuning.tune import tune
    from kontext_fast.verify.verify_preset import verify_preset

__all__ = [
    "PRESETS",
    "EditRequest",
    "EditResult",
    "Preset",
    "__version__",
    "accelerate",
    "edit",
    "edit_many",
    "load",
    "showcase",
    "tune",
    "verify_preset",
]

_PACKAGES = ("cost",)

_HOME = {
    "accelerate": "kontext_fast.optimizations.acceleration",
    "edit": "kontext_fast.pipeline.edit",
    "edit_many": "kontext_fast.pipeline.edit_many",
    "EditRequest": "kontext_fast.pipeline.edit",
    "EditResult": "kontext_fast.pipeline.edit",
    "load": "kontext_fast.pipeline.load",
    "Preset": "kontext_fast.optimizations.presets",
    "PRESETS": "kontext_fast.optimizations.presets",
    "showcase": "kontext_fast.bench.showcase",
    "tune": "kontext_fast.tuning.tune",
    "verify_preset": "kontext_fast.verify.verify_preset",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    # Not for the small names that tools try, such as __path__ and __wrapped__: a search imports all techniques.
    optimization = _optimizations().get(name) if name[:1].isupper() else None
    if optimization is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return optimization


def _optimizations() -> dict[str, Any]:
    """Every optimization by the name of its class."""
    from kontext_fast.optimizations.registry import discover

    return {optimization.__name__: optimization for optimization in discover().values()}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES, *_optimizations()})
