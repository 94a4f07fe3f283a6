"""The roofline of a preset: kernels by category, and the floor of each step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kontext_fast.bench.roofline import Roofline, _measure, category_of
from kontext_fast.cli.main import run
from kontext_fast.cli.roofline_table import table
from kontext_fast.engine.flops import FLUX_KONTEXT_DEV, FULL_SIZE_EDIT
from kontext_fast.engine.kernels.registry import step_bytes
from kontext_fast.engine.ops import Precision
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
def test_kernel_names_map_to_categories(name: str, category: str) -> None:
    assert category_of(name) == category


@pytest.mark.parametrize(("precision", "gigabytes"), [("bf16", 35), ("fp8", 33), ("int8", 51)])
def test_full_size_step_moves_the_expected_bytes(precision: Precision, gigabytes: int) -> None:
    moved = step_bytes(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "full", precision=precision)
    assert round(sum(moved.values()) / 1e9) == gigabytes
    assert step_bytes(FLUX_KONTEXT_DEV, FULL_SIZE_EDIT, "skipped", precision=precision) == {}


@pytest.fixture(scope="module")
def seen() -> Roofline:
    return _measure("tiny", "step_reuse", "cpu", None, 10)


def test_each_step_kind_has_its_roofline(seen: Roofline) -> None:
    steps = {step.kind: step for step in seen.steps}
    assert steps.keys() == {"full", "skipped"}
    assert steps["full"].step == 9
    assert {kernel.category for kernel in steps["full"].kernels} == {"linear", "attention", "element-wise"}
    products = [kernel for kernel in steps["full"].kernels if kernel.name in ("aten::mm", "aten::addmm")]
    # Each double block has two streams of four products; then come single blocks, embedders and so on.
    assert sum(kernel.calls for kernel in products) >= 4 * 8 + 8 * 2
    assert all(floor > 0 for floor in steps["full"].floors_s.values())
    assert {kernel.category for kernel in steps["skipped"].kernels} == {"element-wise"}
    assert all(floor == 0 for floor in steps["skipped"].floors_s.values())
    for step in steps.values():
        assert step.seconds >= sum(step.seconds_of(category) for category in ("linear", "attention", "element-wise"))
        assert list(step.kernels) == sorted(step.kernels, key=lambda kernel: -kernel.seconds)
    assert "step 9, full" in table(seen)


def test_kind_of_only_the_first_step_is_not_profiled() -> None:
    seen = _measure("tiny", "baseline", "cpu", None, 1)
    assert seen.not_seen == ("full",)
    assert "full: not profiled" in table(seen)


def test_command_prints_a_table_per_preset_and_stores_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--checkpoint", "tiny", "--device", "cpu", "--presets", "baseline,faithful", "--steps", "2"]
    assert run(["bench", "--roofline", *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "baseline on cpu" in printed
    assert "faithful on cpu" in printed
    content = json.loads((out / "roofline.json").read_text())
    assert [entry["preset"] for entry in content["rooflines"]] == ["baseline", "faithful"]
    assert [file for file in out.iterdir() if file.name != ".lock"] == [out / "roofline.json"]
    # The documents of a project can be rendered from it.
    text = roofline.render(DocContext(find_published(tmp_path), None))
    assert "`baseline` | full" in text
    assert "`faithful` | full" in text


def test_bytes_are_counted_where_triton_is_missing() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from kontext_fast.bench.roofline import _our_functions, category_of\n"
        "assert _our_functions()['_gelu_quantize'] == 'gelu'\n"
        "assert category_of('_write_qkv') == 'element-wise'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
