"""The table of one step: what ran, what it was for, and the least it could have taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext_fast.bench.roofline import Roofline, _measure, category_of
from kontext_fast.cli.main import run
from kontext_fast.cli.roofline_table import table
from kontext_fast.engine.dimensions import FLUX_KONTEXT_DEV
from kontext_fast.engine.flops import FULL_SIZE_EDIT, elementwise_bytes
from tools.docs.blocks import roofline
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("aten::addmm", "linear"),
        ("aten::mm", "linear"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::gelu", "element-wise"),
        ("aten::native_layer_norm", "element-wise"),
        ("_norm_modulate", "element-wise"),
        ("_gelu_quantize", "element-wise"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_bias_TNN", "linear"),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<...> >", "linear"),
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<...> > >", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3i_128x128x128", "attention"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl>", "element-wise"),
        ("Memcpy DtoD (Device -> Device)", "element-wise"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, category: str) -> None:
    assert category_of(name) == category


@pytest.mark.parametrize(("kind", "quantized", "gigabytes"), [("full", True, 59), ("full", False, 67)])
def test_bytes_of_a_full_size_step(kind: str, quantized: bool, gigabytes: int) -> None:
    moved = elementwise_bytes(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, kind, quantized=quantized)  # type: ignore[arg-type]
    assert round(sum(moved.values()) / 1e9) == gigabytes
    assert elementwise_bytes(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "skipped", quantized=quantized) == {}


@pytest.fixture(scope="module")
def seen() -> Roofline:
    return _measure("tiny", "step_reuse", "cpu", None, 10)


def test_every_kind_of_step_has_its_table(seen: Roofline) -> None:
    steps = {one.kind: one for one in seen.steps}
    assert steps.keys() == {"full", "skipped"}
    assert steps["full"].step == 9
    assert {kernel.category for kernel in steps["full"].kernels} == {"linear", "attention", "element-wise"}
    products = [kernel for kernel in steps["full"].kernels if kernel.name in ("aten::mm", "aten::addmm")]
    # Per double block two streams of four products and two embedders and so on: the same whatever runs them.
    assert sum(kernel.calls for kernel in products) >= 4 * 8 + 8 * 2
    assert all(floor > 0 for floor in steps["full"].floors_s.values())
    assert {kernel.category for kernel in steps["skipped"].kernels} == {"element-wise"}
    assert all(floor == 0 for floor in steps["skipped"].floors_s.values())
    for one in steps.values():
        assert one.seconds >= sum(one.seconds_of(part) for part in ("linear", "attention", "element-wise"))
        assert list(one.kernels) == sorted(one.kernels, key=lambda kernel: -kernel.seconds)
    assert "step 9, full" in table(seen)


def test_a_kind_that_only_the_first_step_has_is_said_to_be_missing() -> None:
    seen = _measure("tiny", "baseline", "cpu", None, 1)
    assert seen.not_seen == ("full",)
    assert "full: not profiled" in table(seen)


def test_the_command_prints_a_table_per_preset_and_keeps_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--checkpoint", "tiny", "--device", "cpu", "--presets", "baseline,faithful", "--steps", "2"]
    assert run(["bench", "--roofline", *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "baseline on cpu" in printed
    assert "faithful on cpu" in printed
    content = json.loads((out / "roofline.json").read_text())
    assert [one["preset"] for one in content["rooflines"]] == ["baseline", "faithful"]
    assert list(out.iterdir()) == [out / "roofline.json"]
    # The documents of a project can be rendered from it.
    text = roofline.render(DocContext(find_published(tmp_path), None))
    assert "`baseline` | full" in text
    assert "`faithful` | full" in text
