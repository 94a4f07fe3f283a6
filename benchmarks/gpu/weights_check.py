"""Time what a scaled float8 file and an exchange of adapters cost at full size, and how far float8 is from what it was.

Usage: python -m benchmarks.gpu.weights_check [--checkpoint random] [--preset balanced] [--out FILE.json]

Writes the transformer of the checkpoint to a scaled float8 file with the names of the original release (12 GB for
`random`), reads it again, and compares one step of both in full precision. Then merges and exchanges two LoRAs of rank
16 by `acceleration.set_adapters`. Seconds, and GiB of GPU memory. Exit code 0: done; 3: no GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, final_latents
from kontext_fast.pipeline.layer_names import original_layers
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.single_file import load_transformer

_LARGEST = 448.0
"""Of e4m3."""


def main() -> int:
    """Write, read, compare, exchange, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    pipe = load(arguments.checkpoint).pipe
    report = {"gpu": torch.cuda.get_device_name(), **measured(pipe, arguments.preset, arguments.size)}
    print(json.dumps(report, indent=1))
    write_report(report, arguments.out)
    return 0


def measured(pipe: Any, preset: str, size: int) -> dict[str, Any]:
    """The report, of `pipe` on the device that it is on."""
    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    request = EditRequest("make the circle red", held_out(1)[0].render(size), steps=1, seed=0, size=(size, size))
    report: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        folder = Path(place)
        before = final_latents(pipe, [request]).float()
        pipe.transformer.save_config(folder / "transformer")
        report["write_s"] = _seconds(device, lambda: write_scaled(pipe.transformer, folder / "fp8_scaled.safetensors"))
        original = pipe.transformer.to("cpu")
        read: list[Any] = []
        report["read_s"] = _seconds(
            device, lambda: read.append(load_transformer(folder / "fp8_scaled.safetensors", folder, dtype)[0])
        )
        report["to_device_s"] = _seconds(device, lambda: read[0].to(device))
        pipe.transformer = read.pop()
        after = final_latents(pipe, [request]).float()
        report["relative_error_of_a_step"] = float((after - before).norm() / before.norm())
        pipe.transformer = original.to(device)
        names = ("first", "second")
        for seed, name in enumerate(names):
            write_adapter(pipe.transformer, folder / f"{name}.safetensors", seed)
        for name in names:
            pipe.load_lora_weights(place, weight_name=f"{name}.safetensors", adapter_name=name)
        pipe.set_adapters("first")
        acceleration = accelerate(pipe, preset, quiet=True)
        final_latents(pipe, [request])
        report["exchange_s"] = [
            _seconds(device, partial(acceleration.set_adapters, name)) for name in ("second", "first", "second")
        ]
        final_latents(pipe, [request])
        acceleration.revert()
    if device.type == "cuda":
        report["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return report


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def write_scaled(transformer: Any, file: Path) -> None:
    """Store `transformer` as ComfyUI's `fp8_scaled` files are: matrices in e4m3 with one `scale_weight` each."""
    weights, stored = transformer.state_dict(), {}
    config = transformer.config
    for name, pieces in original_layers(config.num_layers, config.num_single_layers).items():
        if "processor" in name:
            continue  # names of LoRA files alone
        for part in ("weight", "bias"):
            if f"{pieces[0].layer}.{part}" not in weights:
                continue
            parts = [weights[f"{piece.layer}.{part}"] for piece in pieces]
            rows = [tensor[piece.rows(len(tensor))] for piece, tensor in zip(pieces, parts, strict=True)]
            whole = torch.cat(rows).cpu()
            if whole.dim() == 2:
                scale = whole.abs().amax().float() / _LARGEST
                stored[f"{name}.scale_weight"] = scale
                whole = (whole.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{name}.{'scale' if 'norm' in name else part}"] = whole
    save_file({**stored, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)


def write_adapter(transformer: Any, file: Path, seed: int, rank: int = 16) -> None:
    """Store a LoRA of small random numbers on the attention of every block."""
    generator, stored = torch.Generator().manual_seed(seed), {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            stored[f"transformer.{name}.lora_A.weight"] = 0.01 * torch.randn(
                rank, module.in_features, generator=generator
            )
            stored[f"transformer.{name}.lora_B.weight"] = 0.01 * torch.randn(
                module.out_features, rank, generator=generator
            )
    save_file(stored, file)


if __name__ == "__main__":
    sys.exit(main())
