"""Why a machine cannot run the fused kernels, in one sentence; and who is chosen there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kontext_fast.engine import dispatch
from tests import needs

pytest.importorskip("triton", reason=needs.TRITON)


@pytest.mark.parametrize(
    ("capability", "precision", "reason"),
    [
        ((7, 5), "bf16", "8.0"),
        ((8, 0), "bf16", None),
        ((8, 6), "fp8", "8.9"),
        ((8, 9), "fp8", None),
        ((8, 9), "int8", "9.0"),
        ((9, 0), "int8", None),
    ],
)
def test_compute_capability_decides_the_precision(
    capability: tuple[int, int], precision: str, reason: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _with_headers(monkeypatch, tmp_path)
    refused = dispatch.refusal("cuda", capability, precision)  # type: ignore[arg-type]
    assert refused is None if reason is None else reason in str(refused)


def test_amd_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kontext_fast.engine.kernels import fused

    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA" in str(fused.refusal())


def test_missing_compiler_or_headers_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kontext_fast.engine.kernels import fused

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "install gcc" in str(fused.refusal())
    monkeypatch.setenv("CC", "some-compiler")
    monkeypatch.setattr(fused, "_python_headers", lambda: tmp_path)
    assert "Python.h" in str(fused.refusal())
    (tmp_path / "Python.h").touch()
    assert fused.refusal() is None


def test_fused_kernels_are_chosen_on_cuda_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_headers(monkeypatch, tmp_path)
    assert dispatch.refusal("cuda", (9, 0), "fp8", "auto") is None
    assert dispatch.make_ops("cuda", "fp8", "auto").kernel == "fused"
    assert dispatch.make_ops("cpu", "bf16", "auto").kernel == "portable"


def test_without_triton_bf16_is_portable_and_fp8_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert dispatch.kernel_kind("cuda", "bf16") == "portable"
    assert dispatch.refusal("cuda", (9, 0), "bf16", "auto") is None
    assert "fused kernels" in str(dispatch.refusal("cuda", (9, 0), "fp8", "auto"))


def _with_headers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from kontext_fast.engine.kernels import fused

    (folder / "Python.h").touch()
    monkeypatch.setattr(fused, "_python_headers", lambda: folder)
    monkeypatch.setenv("CC", "some-compiler")
