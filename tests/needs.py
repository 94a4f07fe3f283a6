"""What a test may need that is not on every machine. The reason of each skip ends with the command that brings it, and
`make test` prints the reasons at its end."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest
import torch

from kontext_fast.engine.attention.flash3 import installed_interface
from kontext_fast.pipeline.device import Machine

GPU = "needs a CUDA GPU: run `make test` on a machine with one"
TRITON = "needs triton, which CUDA builds of PyTorch bring: pip install triton"
PEERS = "needs the extra `peers`: pip install --constraint constraints.txt --editable '.[peers]'"
DOCS = "needs the extra `docs`: pip install --constraint constraints.txt --editable '.[docs]'"

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=GPU)
RAY = "needs the extra `ray`: pip install --constraint constraints.txt --editable '.[ray]'"

no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs a machine without a GPU: CUDA_VISIBLE_DEVICES= make test"
)
cache_dit = pytest.mark.skipif(find_spec("cache_dit") is None, reason=PEERS)
torchao = pytest.mark.skipif(find_spec("torchao") is None, reason=PEERS)
mkdocs = pytest.mark.skipif(find_spec("mkdocstrings_handlers") is None or find_spec("material") is None, reason=DOCS)
ray = pytest.mark.skipif(find_spec("ray") is None, reason=RAY)
s3 = pytest.mark.skipif(
    find_spec("upath") is None or find_spec("s3fs") is None,
    reason="needs the extra `s3`: pip install --constraint constraints.txt --editable '.[s3]'",
)
cxx_compiler = pytest.mark.skipif(Machine.detect("cpu").cxx is None, reason="needs a C++ compiler: apt-get install g++")
pdflatex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="needs pdflatex: apt-get install texlive-latex-recommended"
)
flash_attention_3 = pytest.mark.skipif(
    installed_interface() is None, reason="needs FlashAttention-3: pip install fa3-fwd"
)
