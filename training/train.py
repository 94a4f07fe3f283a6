"""Trains `tiny` in four stages, each within ten minutes on one modern GPU and resumable.

    python training/train.py clip     --out runs/tiny   contrastive pair; its text half conditions the transformer
    python training/train.py vae      --out runs/tiny   autoencoder
    python training/train.py editor   --out runs/tiny   transformer and T5 encoder, flow matching
    python training/train.py guidance --out runs/tiny   the transformer learns to guide itself
    python training/train.py export   --out runs/tiny   writes the diffusers folder runs/tiny/tiny

Run them in this order. After an interruption, the same command resumes the stage.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from clip import train_clip
from editor import train_editor
from export import export
from guidance import train_guidance
from loop import Schedule
from stages import Run, Stage, usual_device, usual_processes
from vae import train_vae

STAGES = {
    "clip": Stage(train_clip, Schedule(steps=1_500, learning_rate=1e-3), batch=1024, seed=1),
    "vae": Stage(train_vae, Schedule(steps=12_000, learning_rate=8e-4), batch=24, seed=2),
    "editor": Stage(train_editor, Schedule(steps=30_000, learning_rate=1e-3, warmup=500), batch=256, seed=3),
    "guidance": Stage(train_guidance, Schedule(steps=6_000, learning_rate=4e-4, warmup=200), batch=256, seed=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "export"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="instead of the stage's own, for a slower device")
    parser.add_argument("--batch", type=int, help="instead of the stage's own")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="from the weights of this pipeline")
    parser.add_argument("--seed", type=int, default=1, help="1 to 9, of the data; another one for another round")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="choose the steps by the pace of this device")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="SECONDS", help="pause, keep the state")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "export":
        print(export(arguments.out))
        return
    stage = STAGES[arguments.stage]
    torch.manual_seed(stage.seed)
    schedule = stage.schedule if arguments.steps is None else replace(stage.schedule, steps=arguments.steps)
    stage.train(
        Run(
            folder=arguments.out,
            schedule=schedule,
            batch=arguments.batch or stage.batch,
            seed=10 * stage.seed + arguments.seed,
            start=arguments.start,
            stop_after_s=arguments.stop_after,
            within_s=arguments.within,
            started=time.monotonic(),
            device=usual_device(),
            processes=usual_processes(),
        )
    )


if __name__ == "__main__":
    main()
