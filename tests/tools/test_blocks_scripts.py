"""Passages on the numbers that scripts wrote: what is in the file, where it came from, and a word where there is none.

Of what needs a GPU the files are made up, in the form that the scripts give them.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tools.docs.blocks import (
    attention,
    capacity,
    folder,
    low_memory,
    precision,
    roofline,
    several_gpus,
    step_graphs,
    vae,
    weights,
)
from tools.docs.doc_context import DocContext
from tools.docs.result_tree import find_published

VAE = {
    "gpu": "Imaginary GPU",
    "size": 1024,
    "variants": {
        "as it is": {"encode": {"ms": 46.7, "error": 0.0132}, "decode": {"ms": 85.1, "error": 0.0124}},
        "fused_vae": {"encode": {"ms": 20.0, "error": 0.0109}, "decode": {"ms": 36.9, "error": 0.0108}},
    },
}
STAGE = {"seconds": 2.5, "allocated_peak_gib": 16.25, "reserved_peak_gib": 17.0, "in_use_on_the_gpu_gib": 17.75}
LOW_MEMORY = {"preset": "low_memory", "cap_gib": 22.0, "gpu": "Imaginary GPU", "load": STAGE, "first edit": STAGE}
BOTH = {
    truth: {"first step": step, "final latents": final}
    for truth, step, final in (("against diffusers, bfloat16", 0.0, 0.03), ("against diffusers, float32", 0.0139, 0.1))
}
PRECISION = {
    "checkpoint": "tiny", "items": 2, "steps": 28, "size": [128, 64], "torch": "2.0", "device": "cpu",
    "errors": {"diffusers, bfloat16": BOTH, "balanced": BOTH},
}  # fmt: skip


def rendered(block: ModuleType, root: Path, name: str, content: Any) -> list[str]:
    folder = root / "results" / "card"
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(content))
    lines = block.render(DocContext(find_published(root / "results"), to_root="../")).splitlines()
    assert f"(../results/card/{name})" in "".join(lines)
    return [line for line in lines if line]


def test_vae_block_shows_each_layout(tmp_path: Path) -> None:
    _, _, plain, fused, where = rendered(vae, tmp_path, "vae.json", VAE)
    assert plain == "| as it is | 47 ms | 0.0132 | 85 ms | 0.0124 |"
    assert fused == "| `fused_vae` | 20 ms | 0.0109 | 37 ms | 0.0108 |"
    assert "1024x1024 in bfloat16 on Imaginary GPU" in where


def test_step_graphs_block_shows_both_hosts(tmp_path: Path) -> None:
    hosts = {"as it is": {"without": 50.0, "with": 40.0}, "10 us slower": {"without": 68.0, "with": 40.25}}
    recorded = {"512x512, 1 at once": {"record_s": 0.111, "pool_bytes_with_earlier_ones": 2**29}}
    timed = {"attention_kernel": "flash3", "equal": {"a": True, "b": False}, "recorded": recorded}
    untimed = {**timed, "attention_kernel": "cudnn", "ms_per_step": {}}
    content = {"gpu": "Imaginary GPU", "balanced": {**timed, "ms_per_step": {"512": hosts}}, "precise": untimed}
    _, _, row, where, compared = rendered(step_graphs, tmp_path, "step_graphs.json", content)
    assert row == "| `balanced` | 512x512 | 50.0 ms | 40.0 ms | 68.0 ms | 40.2 ms | 0.11 s | 0.5 GiB |"
    assert "on Imaginary GPU, attention by flash3;" in where
    assert "2 of 4 comparisons" in compared


def test_low_memory_block_shows_the_cap(tmp_path: Path) -> None:
    _, _, load, first, where = rendered(low_memory, tmp_path, "low_memory.json", LOW_MEMORY)
    assert load == "| load | 2.5 s | 16.2 GiB | 17.0 GiB | 17.8 GiB |"
    assert first.startswith("| first edit |")
    assert "under a cap of 22 GiB on Imaginary GPU" in where


def test_weights_block_shows_file_and_offloading(tmp_path: Path) -> None:
    names = ("first_step_original", "first_step_file", "first_step_of_the_file", "write", "read", "hook_second_step")
    stages = {name: {"seconds": 1.0 + i, "peak_gib": 20.0 + i} for i, name in enumerate(names)}
    stages |= {f"exchange_{i}": {"seconds": 5.0 + i, "peak_gib": 30.0} for i in range(2)}
    errors = {"file": 0.09, "fast": 0.05, "fast of the file": 0.1, "fast of the file, to the file": 0.03}
    facts = {"equal_to_accelerated": False, "error_to_accelerated": 0.25}
    content = {
        "preset": "fast", "checkpoint": "random", "gpu": "Imaginary GPU", "as_stored_file": 266,
        "stages": stages, "relative_error": errors, "hook_facts": facts,
    }  # fmt: skip
    lines = rendered(weights, tmp_path, "weights_random.json", content)
    assert "| the file, `fast` | 0.1000 | 2.00 s | 21.0 GiB |" in lines
    assert "| the file, stock | 0.0900 | 3.00 s | 22.0 GiB |" in lines
    assert "| `hook` | 6.00 s | 25.0 GiB | not run |  | 0.2500 away |" in lines
    assert "- 266 matrices run in `fast` as the file stores them; its step is 0.0300 away" in "\n".join(lines)
    assert (
        "written in 4 s and read in 5 s; another LoRA of rank 16 takes the place of a merged one in 5.0 to 6.0 s"
        in ("\n".join(lines))
    )
    stages["hook_stock_step"] = {"seconds": 9.0, "peak_gib": 31.0}
    facts.update(equal_to_accelerated=True, equal_to_stock=False)
    lines = rendered(weights, tmp_path / "again", "weights_random.json", content)
    assert "| `hook` | 6.00 s | 25.0 GiB | 9.00 s | 31.0 GiB | equal; stock's after `revert` are not |" in lines


def test_folder_block_compares_with_memory(tmp_path: Path) -> None:
    blocks = [{"images": 50, "from_memory": 5, "memory_s": 10.0, "folder_s": 100.0 + 5 * number} for number in range(2)]
    content = {
        "gpu": "Imaginary GPU", "preset": "turbo", "checkpoint": "random", "size": 512, "images": 100,
        "from_memory": 10, "ratio": 1.025, "blocks": blocks,
    }  # fmt: skip
    (line,) = rendered(folder, tmp_path, "folder.json", content)
    assert line.startswith("- 100 images of 512x512 with `turbo` on Imaginary GPU, `random`: 2.050 s an image")
    assert "**1.025 times** one from memory (blocks of 50: 1.000 to 1.050; 10 of the images" in line


def test_capacity_block_shows_forecast_and_measurement(tmp_path: Path) -> None:
    load = {
        "asked": 0.7, "share": 0.72, "served": 1999, "requests": 2000, "forecast_p95_s": 0.5,
        "measured_p95_s": [0.6, 0.55, 0.65], "holds": False,
    }  # fmt: skip
    loads = [load, load | {"forecast_p95_s": None}]
    content = {"machine": "2 cores", "steps": 1, "loads": loads}
    _, _, row, over, where = rendered(capacity, tmp_path, "capacity.json", content)
    assert row == "| 70 % | 72 % | 1999 of 2000 | 0.500 s | 0.600 s (0.550 s to 0.650 s) | no |"
    assert "| none: more than the server can do |" in over
    assert "on a CPU with 2 cores" in where


def test_precision_block_shows_errors(tmp_path: Path) -> None:
    _, _, plain, balanced, where = rendered(precision, tmp_path, "precision_tiny.json", PRECISION)
    assert plain == "| diffusers, bfloat16 | equal | 0.03 | 0.014 | 0.1 |"
    assert balanced.startswith("| `balanced` | equal |")
    assert "`tiny` on a CPU, where plain PyTorch stands in for the kernels, 2 edits of 128x64, 28 steps" in where


def test_attention_block_compares_kernels(tmp_path: Path) -> None:
    found = {
        "flop_per_second": 6e14, "seconds": 0.0014, "errors": {"even": 0.05, "peaked": 0.1, "outliers": 0.002},
        "seconds_per_step": 0.19, "latents_apart": 0.0,
    }  # fmt: skip
    kernels = {"cudnn": found, "flash3_fp8": found | {"latents_apart": 0.0688}}
    content = {"gpu": "Imaginary GPU", "torch": "2.0", "tokens": 8704, "steps": 8, "kernels": kernels}
    content["refused"] = {"flash3": "it needs a package"}
    _, _, default, other, where, refused = rendered(attention, tmp_path, "attention.json", content)
    assert default == "| `cudnn` | 1.40 ms, 600 TFLOP/s | 0.05 | 0.1 | 0.002 | 190.0 ms | equal |"
    assert other.endswith("| 0.069 |")
    assert "Imaginary GPU, torch 2.0, 8704 tokens" in where
    assert refused == "- `flash3` did not run: it needs a package."


def test_roofline_block_compares_times_with_floors(tmp_path: Path) -> None:
    kernels = [
        {"name": "gemm", "category": "linear", "calls": 3, "seconds": 0.08, "floor_s": None},
        {"name": "_gelu", "category": "element-wise", "calls": 1, "seconds": 0.01, "floor_s": 0.01},
        {"name": "fmha", "category": "attention", "calls": 1, "seconds": 0.05, "floor_s": None},
        {"name": "gemv", "category": "linear", "calls": 3, "seconds": 0.02, "floor_s": None},
    ]
    floors = {"linear": 0.09, "attention": 0.04, "element-wise": 0.01}
    step = {"kind": "full", "step": 7, "kernels": kernels, "floors_s": floors, "idle_s": 0.002}
    one = {
        "preset": "faithful", "device": "Imaginary GPU", "tokens": {"text": 512, "image": 4096, "reference": 4000},
        "ceilings": {"linear_flop": 8e14, "attention_flop": 6.5e14, "copy_bytes": 4.3e12}, "steps": [step],
        "not_seen": [],
    }  # fmt: skip
    content = {"checkpoint": "random", "rooflines": [one], "refused": []}
    _, _, row, where, best = rendered(roofline, tmp_path, "roofline.json", content)
    cells = "`faithful` | full (7) | 162.0 ms | 140.0 ms | 100.0 ms (90%) | 50.0 ms (80%) | 10.0 ms (100%) | 2.0 ms"
    assert row == f"| {cells} |"
    assert "512 of text, 4096 of the image, 4000 of the reference" in where
    assert "800 TFLOP/s in products, 650 in attention, and 4.30 TB/s" in best


@pytest.mark.parametrize("block", [attention, vae, folder, capacity, low_memory, precision, roofline, weights])
def test_block_without_reports_says_not_measured(block: ModuleType, tmp_path: Path) -> None:
    text = block.render(DocContext(find_published(tmp_path)))
    assert "|" not in text
    assert "yet" in text


def _on_gpus(step_ms: float, edit_s: float, exchange: tuple[float, ...]) -> dict[str, Any]:
    kinds = [{"products": 40.0, "attention": 30.0, "between": 10.0, "exchange": each} for each in exchange]
    return {"step_median_s": step_ms / 1000, "edit_median_s": edit_s, "kinds_ms": kinds}


def test_several_gpus_block_shows_parts_prediction_and_money(tmp_path: Path) -> None:
    together = {**_on_gpus(100.0, 0.8, (14.0, 12.0)), "relative_error": 0.0123, "bit_equal": False}
    true_cfg = {"alone": {"edit_median_s": 2.4}, "together": {"edit_median_s": 1.5}, "bit_equal": True}
    report = {
        "gpu": "NVIDIA H100 80GB HBM3", "gpus": 2, "torch": "2.0", "nccl": "2.28", "checkpoint": "random", "size": 1024,
        "steps": 6, "presets": {"balanced": {"alone": _on_gpus(160.0, 1.2, (0.0,)),
        "together": {"collectives": together}, "true_cfg": true_cfg, "not_measured": {"peer_memory+graphs": "no way"}}},
        "peers": {"native": {"1": _on_gpus(400.0, 2.4, (0.0,)), "2": _on_gpus(200.0, 1.5, (9.0,))}},
    }  # fmt: skip
    lines = rendered(several_gpus, tmp_path, "several_gpus.json", report)
    assert "| `balanced` | 2 GPUs, collectives | 100.0 ms | 1.60x | 0.800 s | 1.50x | 0.0123 |" in lines
    # The transfer is that of the GPU that comes last; 8 of 100 ms are left.
    assert "| `balanced` | 2 GPUs, collectives | 40.0 ms | 30.0 ms | 10.0 ms | 12.0 ms | 8.0 ms | 100.0 ms |" in lines
    # 4 GPUs: 80 / 2 + 12 x (3 / 16) / (1 / 4) + 8; 8 GPUs: 80 / 4 + 12 x (7 / 64) / (1 / 4) + 8.
    assert "| `balanced` | collectives | 57 ms, 2.8x | 33 ms, 4.8x |" in lines
    assert any("a thousand edits cost $" in line for line in lines)
    assert any("Not measured with `balanced`, peer memory, graphs: no way" in line for line in lines)
    assert "True CFG, `balanced`: 2.400 s an edit on one GPU, 1.500 s on 2, 1.60x, with the same bits." in lines
    ulysses = "2 GPUs, ContextParallelConfig(ulysses_degree=2)"
    assert f"| `native` | {ulysses} | 200.0 ms | 2.00x | 1.500 s | 1.60x |" in lines


def test_several_gpus_block_shows_each_mode_by_its_newest_file(tmp_path: Path) -> None:
    older, newer = (
        {
            "gpu": "Imaginary GPU", "gpus": 2, "torch": "2.0", "nccl": "2.28", "checkpoint": "random", "size": 1024,
            "steps": 6, "presets": {"balanced": {"alone": _on_gpus(160.0, 1.2, (0.0,)), "together": together}},
        }
        for together in (
            {"collectives": _on_gpus(110.0, 0.9, (9.0,)), "peer_memory": _on_gpus(105.0, 0.9, (1.0,))},
            {"peer_memory": _on_gpus(100.0, 0.8, (1.0,))},
        )
    )  # fmt: skip
    (tmp_path / "results/a").mkdir(parents=True)
    (tmp_path / "results/a/several_gpus.json").write_text(json.dumps(older))
    lines = rendered(several_gpus, tmp_path, "several_gpus.json", newer)
    steps = [line.split("|")[2:4] for line in lines if line.count("|") == 8 and "2 GPUs" in line]
    assert steps == [[" 2 GPUs, peer memory ", " 100.0 ms "], [" 2 GPUs, collectives ", " 110.0 ms "]]
