"""FLUX.1-Kontext image editing, made fast and measured.

The public names load on first use, so that importing this package costs no import of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kontext_fast.version import __version__

if TYPE_CHECKING:
    from kontext_fast.optimizations.acceleration import accelerate
    from kontext_fast.optimizations.presets import PRESETS, Preset
    from kontext_fast.pipeline.edit import EditRequest, EditResult, edit
    from kontext_fast.pipeline.edit_many import edit_many
    from kontext_fast.pipeline.load import load
    from kontext_fast.tuning.tune import tune

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
    "tune",
]

_HOME = {
    "accelerate": "kontext_fast.optimizations.acceleration",
    "edit": "kontext_fast.pipeline.edit",
    "edit_many": "kontext_fast.pipeline.edit_many",
    "EditRequest": "kontext_fast.pipeline.edit",
    "EditResult": "kontext_fast.pipeline.edit",
    "load": "kontext_fast.pipeline.load",
    "Preset": "kontext_fast.optimizations.presets",
    "PRESETS": "kontext_fast.optimizations.presets",
    "tune": "kontext_fast.tuning.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
