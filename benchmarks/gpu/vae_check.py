"""Time the VAE at 1024x1024 as it is, in channels_last and with fused norms, and check each against float32.

Usage: python -m benchmarks.gpu.vae_check [--size 1024] [--out FILE.json]

The VAE has the full-size architecture and random weights. Exit code 0: all right; 1: the fused one is wrong; 3: no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kontext_fast.optimizations.techniques.channels_last import ChannelsLast
from kontext_fast.optimizations.techniques.fused_vae import FusedVae
from kontext_fast.pipeline.random_weights import Architecture, _materialize

VARIANTS = {"as it is": (), "channels_last": (ChannelsLast(),), "fused_vae": (ChannelsLast(), FusedVae())}


def main() -> int:
    """Check, time, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here.", file=sys.stderr)
        return 3
    device = torch.device("cuda", torch.cuda.current_device())
    vae, side = _vae(device), arguments.size
    image = torch.rand(1, 3, side, side, device=device) * 2 - 1
    latents = torch.randn(1, 16, side // 8, side // 8, device=device)
    with torch.no_grad():
        wide = _vae(device, torch.float32)
        wide.load_state_dict({name: one.float() for name, one in vae.state_dict().items()})
        truth = {"encode": wide.encode(image).latent_dist.mode(), "decode": wide.decode(latents).sample}
        del wide
        image, latents = image.bfloat16(), latents.bfloat16()
        results = {name: _measured(vae, chosen, image, latents, truth) for name, chosen in VARIANTS.items()}
    report = json.dumps({"gpu": torch.cuda.get_device_name(device), "size": side, "variants": results}, indent=1)
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all(_is_right(results, stage) for stage in truth) else 1


def _vae(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(**Architecture().vae())
    return _materialize(vae, device, dtype, torch.Generator(device).manual_seed(0))


def _measured(vae: Any, chosen: tuple[Any, ...], image: Any, latents: Any, truth: dict[str, Any]) -> dict[str, Any]:
    pipe = SimpleNamespace(vae=vae, _execution_device=image.device)
    with ExitStack() as undo:
        for one in chosen:
            one.apply(pipe, undo)
        calls: dict[str, Callable[[], Any]] = {
            "encode": lambda: vae.encode(image).latent_dist.mode(),
            "decode": lambda: vae.decode(latents).sample,
        }
        return {
            stage: {"ms": 1e3 * _seconds(call, image.device), "error": _error(call(), truth[stage])}
            for stage, call in calls.items()
        }


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    samples = []
    for _ in range(12):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - began)
    return statistics.median(samples[len(samples) // 3 :])


def _error(result: Any, truth: Any) -> float:
    return float((result.float() - truth).norm() / truth.norm())


def _is_right(results: dict[str, Any], stage: str) -> bool:
    fused, plain = (results[name][stage]["error"] for name in ("fused_vae", "as it is"))
    return bool(fused <= 1.25 * plain + 1e-4)


if __name__ == "__main__":
    sys.exit(main())
