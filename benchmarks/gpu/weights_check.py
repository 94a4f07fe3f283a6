"""What people's weights and hooks cost at full size: a scaled float8 file, an exchange of adapters, and offloading.

Usage: python -m benchmarks.gpu.weights_check [--checkpoint random] [--preset balanced] [--minutes 9] [--out FILE.json]

It writes the transformer of the checkpoint to a scaled float8 file with the names of the original release (12 GB for
`random`), reads it again, and compares one step of both, stock and under the preset: how many matrices run as stored,
and how far each is from the step of the original. Then it merges and exchanges two LoRAs of rank 16 by
`acceleration.set_adapters`. Last it puts each offloading of diffusers on the pipeline, by models, by groups with a
stream and by layers, and accelerates that: whether the step is the one of the same weights without hooks, and stock's
after `revert`. Seconds, and GiB of GPU memory by stage. The file is written again after every stage, and when the
minutes are over the process ends with what it has. Exit code 0: done; 1: the minutes were over; 3: no GPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from safetensors.torch import save_file

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from benchmarks.gpu.latents import relative_error
from kontext_fast.datasets.shapes import held_out
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, final_latents
from kontext_fast.pipeline.layer_names import original_layers
from kontext_fast.pipeline.load import load
from kontext_fast.pipeline.single_file import load_transformer

_LARGEST = 448.0
"""Of e4m3."""


def main() -> int:
    """Measure stage by stage; print and store each."""
    parser = option_parser(__doc__)
    parser.add_argument("--checkpoint", default="random")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=9.0)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    report = Stages({"checkpoint": arguments.checkpoint, "preset": arguments.preset}, arguments.out)
    over = threading.Timer(60 * arguments.minutes, report.give_up)
    over.daemon = True
    over.start()
    report.note(gpu=torch.cuda.get_device_name())
    with report.stage("load"):
        pipe = load(arguments.checkpoint).pipe
    measure(report, pipe, arguments.preset, arguments.size)
    report.note(complete=True)
    return 0


class Stages:
    """A report that is stored after each of its stages."""

    def __init__(self, facts: dict[str, Any], out: Path | None) -> None:
        self.facts: dict[str, Any] = {**facts, "complete": False, "stages": {}}
        self._out = out
        self._now = "start"

    def note(self, **facts: Any) -> None:
        """Add facts, and store all."""
        self.facts.update(facts)
        print(json.dumps(facts), flush=True)
        write_report(self.facts, self._out)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside, to its end on the GPU, with the memory that it allocated at most."""
        self._now, on_gpu, began = name, torch.cuda.is_initialized(), time.perf_counter()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        yield
        measured: dict[str, float] = {}
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            measured["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        measured["seconds"] = time.perf_counter() - began
        self.facts["stages"][name] = measured
        self.note(**{name: measured["seconds"]})

    def give_up(self) -> None:
        """End the process: the minutes are over."""
        print(f"The minutes are over in the stage {self._now}; what was measured before is stored.", file=sys.stderr)
        os._exit(1)


def measure(report: Stages, pipe: Any, preset: str, size: int) -> None:
    """The stages of `pipe`, on the device that it is on; its transformer is another one afterwards."""
    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    request = EditRequest("make the circle red", held_out(1)[0].render(size), steps=1, seed=0, size=(size, size))

    def step() -> torch.Tensor:
        return final_latents(pipe, [request]).float()

    def accelerated_step(name: str) -> torch.Tensor:
        with report.stage(f"accelerate_{name}"):
            acceleration = accelerate(pipe, preset, quiet=True)
        with report.stage(f"first_step_{name}"):
            latents = step()
        report.note(**{f"as_stored_{name}": acceleration.facts.get("engine", {}).get("as_stored")})
        with report.stage(f"revert_{name}"):
            acceleration.revert()
        return latents

    with TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / "fp8_scaled.safetensors"
        with report.stage("first_step"):
            of_original = step()
        fast_original = accelerated_step("original")
        pipe.transformer.save_config(folder / "transformer")
        with report.stage("write"):
            write_scaled(pipe.transformer, file)
        # Freed before the other one is read, so that a step of the file has the memory of a step.
        pipe.transformer = None
        gc.collect()
        with report.stage("read"):
            transformer = load_transformer(file, folder, dtype)[0]
        with report.stage("to_device"):
            pipe.transformer = transformer.to(device)
        with report.stage("first_step_of_the_file"):
            of_file = step()
        fast_file = accelerated_step("file")
        report.note(
            relative_error={
                "file": relative_error(of_file, of_original),
                f"{preset}": relative_error(fast_original, of_original),
                f"{preset} of the file": relative_error(fast_file, of_original),
                f"{preset} of the file, to the file": relative_error(fast_file, of_file),
            }
        )
        names = ("first", "second")
        with report.stage("load_adapters"):
            for seed, name in enumerate(names):
                write_adapter(pipe.transformer, folder / f"{name}.safetensors", seed)
            for name in names:
                pipe.load_lora_weights(place, weight_name=f"{name}.safetensors", adapter_name=name)
            pipe.set_adapters("first")
        with report.stage("accelerate_with_an_adapter"):
            acceleration = accelerate(pipe, preset, quiet=True)
        for number, name in enumerate(("second", "first", "second")):
            with report.stage(f"exchange_{number}"):
                acceleration.set_adapters(name)
        with report.stage("step_after_exchange"):
            step()
        acceleration.revert()
        pipe.unload_lora_weights()
    measure_offloading(report, pipe, preset, request)


OFFLOADINGS: dict[str, dict[str, Any]] = {
    "enable_model_cpu_offload": {},
    "enable_group_offload": {"offload_type": "block_level", "num_blocks_per_group": 1},
    "enable_sequential_cpu_offload": {},
}
"""Methods of diffusers with their arguments; the last one, which is slowest, where the minutes suffice."""


def measure_offloading(report: Stages, pipe: Any, preset: str, request: EditRequest) -> None:
    """The stages of `pipe` with each offloading of diffusers on it, which is on all of its models afterwards."""
    device = pipe.transformer.device

    def step() -> torch.Tensor:
        return final_latents(pipe, [request]).float()

    stock = step()
    with accelerate(pipe, preset, quiet=True):
        accelerated = step()
    for method, options in OFFLOADINGS.items():
        where: dict[str, Any] = {"device": device}
        if method == "enable_group_offload":
            where = {"onload_device": device, "use_stream": device.type == "cuda"}
        with report.stage(method):
            getattr(pipe, method)(**where, **options)
        with report.stage(f"{method}_accelerate"):
            acceleration = accelerate(pipe, preset, quiet=True)
        for number in ("first", "second"):
            with report.stage(f"{method}_{number}_step"):
                latents = step()
        with report.stage(f"{method}_revert"):
            acceleration.revert()
        facts = {
            "plan": acceleration.plan.preset,
            "equal_to_accelerated": torch.equal(latents, accelerated),
            "error_to_accelerated": relative_error(latents, accelerated),
        }
        if method != "enable_sequential_cpu_offload":
            with report.stage(f"{method}_stock_step"):
                facts["equal_to_stock"] = torch.equal(step(), stock)
        report.note(**{f"{method}_facts": facts})
        with report.stage(f"{method}_off"):
            _take_off(pipe, method, device)


def _take_off(pipe: Any, method: str, device: torch.device) -> None:
    pipe.remove_all_hooks()
    if method == "enable_group_offload":  # which diffusers has no opposite of
        for model in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            for hook in ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading"):
                HookRegistry.check_if_exists_or_initialize(model).remove_hook(hook, recurse=True)
    pipe.to(device)


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
            whole = torch.cat(rows)
            if whole.dim() == 2:
                scale = whole.abs().amax().float() / _LARGEST
                stored[f"{name}.scale_weight"] = scale.cpu()
                whole = (whole.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{name}.{'scale' if 'norm' in name else part}"] = whole.cpu()
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
