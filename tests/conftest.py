"""What must be settled before any test module is imported."""

from __future__ import annotations

import importlib
import signal
from importlib.util import find_spec

import pytest
import torch

# A shell starts background jobs with Ctrl-C ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the kernels run in Triton's interpreter. Triton decides that once, when it is imported, and other tests
# import it too, by way of torch.
if find_spec("triton") is not None and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        for name in ("fused", "group_norm_silu"):
            importlib.import_module(f"kontext_fast.engine.kernels.{name}")
