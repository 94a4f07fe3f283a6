"""Time the VAE at 1024x1024 unchanged, in channels_last and with fused norms, and check each against float32.

Usage: python -m benchmarks.gpu.vae_check [--size 1024] [--out FILE.json]

The VAE has the full-size architecture and random weights. Exit code 0: done; 1: the fused VAE is wrong; 3: no GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.gpu.check import NO_GPU, has_gpu, option_parser, write_report
from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.techniques.fused_vae import ChannelsLast, FusedVae
from kontext_fast.pipeline.random_weights import Architecture, materialize

VARIANTS: dict[str, tuple[Optimization, ...]] = {
    "as it is": (),
    "channels_last": (ChannelsLast(),),
    "fused_vae": (ChannelsLast(), FusedVae()),
}

_CALLS = 12


def main() -> int:
    """Check, time, print and store."""
    parser = option_parser(__doc__)
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    if not has_gpu():
        return NO_GPU
    device = torch.device("cuda", torch.cuda.current_device())
    vae, side = _vae(device), arguments.size
    image = torch.rand(1, 3, side, side, device=device) * 2 - 1
    latents = torch.randn(1, 16, side // 8, side // 8, device=device)
    with torch.no_grad():
        exact = _vae(device, torch.float32)
        exact.load_state_dict({name: weight.float() for name, weight in vae.state_dict().items()})
        reference = {"encode": exact.encode(image).latent_dist.mode(), "decode": exact.decode(latents).sample}
        del exact
        image, latents = image.bfloat16(), latents.bfloat16()
        results = {name: _measured(vae, variant, image, latents, reference) for name, variant in VARIANTS.items()}
    report = {"gpu": torch.cuda.get_device_name(device), "size": side, "variants": results}
    print(json.dumps(report, indent=1))
    write_report(report, arguments.out)
    return 0 if all(_is_right(results, stage) for stage in reference) else 1


def _vae(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**Architecture().vae())
    return materialize(vae, device, dtype, torch.Generator(device).manual_seed(0))


def _measured(
    vae: Any, variant: tuple[Optimization, ...], image: Any, latents: Any, reference: dict[str, Any]
) -> dict[str, Any]:
    pipe = _OnlyVae(vae, image.device)
    with ExitStack() as undo:
        for optimization in variant:
            optimization.apply(pipe, undo)
        calls: dict[str, Callable[[], Any]] = {
            "encode": lambda: vae.encode(image).latent_dist.mode(),
            "decode": lambda: vae.decode(latents).sample,
        }
        return {
            stage: {"ms": 1e3 * _seconds(call, image.device), "error": _error(call(), reference[stage])}
            for stage, call in calls.items()
        }


class _OnlyVae:
    """What optimizations of the VAE see of a pipeline."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self.vae, self._execution_device = vae, device

    def __call__(self) -> None:
        """Nothing: the VAE is called by itself."""


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    samples = []
    for _ in range(_CALLS):
        began = _now(device)
        call()
        samples.append(_now(device) - began)
    return statistics.median(samples[len(samples) // 3 :])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _error(result: Any, reference: Any) -> float:
    return float((result.float() - reference).norm() / reference.norm())


def _is_right(results: dict[str, Any], stage: str) -> bool:
    fused, plain = (results[name][stage]["error"] for name in ("fused_vae", "as it is"))
    return bool(fused <= 1.25 * plain + 1e-4)


if __name__ == "__main__":
    sys.exit(main())
