"""Without a GPU the kernels run in Triton's interpreter, and Triton decides that once, when it is imported.

Other tests import it too, by way of torch, so here it comes before all of them.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is not None and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("kontext_fast.engine.kernels.fused")
