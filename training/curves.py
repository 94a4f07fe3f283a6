"""Draws the logs of a training: python training/curves.py, from training/logs to training/curves.png."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from encoded import CAPTION_EVERY

HERE = Path(__file__).parent
PANELS = [
    ("vae", "psnr_db", "autoencoder: PSNR on training pictures, dB"),
    ("editor", "loss", "editor: flow-matching loss on edits"),
    ("guidance", "loss", "guidance: error against two guided passes, on edits"),
]
"""Stage, figure, title."""
SMOOTHED_OVER = 5


def rounds(stage: str) -> list[Path]:
    return sorted((HERE / "logs").glob(f"{stage}-*.jsonl"))


def main() -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 4), layout="constrained")
    for axis, (stage, name, title) in zip(axes, PANELS, strict=True):
        for number, path in enumerate(rounds(stage), start=1):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            # Steps that saw captions have several times the loss of those that saw edits.
            rows = [row for row in rows if stage == "vae" or row["step"] % CAPTION_EVERY]
            steps, values = ([row[key] for row in rows] for key in ("step", name))
            (line,) = axis.plot(steps, values, alpha=0.25, linewidth=1)
            kernel = np.ones(SMOOTHED_OVER) / SMOOTHED_OVER
            middle = slice(SMOOTHED_OVER // 2, len(steps) - SMOOTHED_OVER // 2)
            axis.plot(
                steps[middle],
                np.convolve(values, kernel, "valid"),
                color=line.get_color(),
                label=f"round {number}, {steps[-1]:,} steps",
            )
        axis.set(title=title, xlabel="step of the round")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes[1:]:
        axis.set_yscale("log")
    figure.savefig(HERE / "curves.png", dpi=120)


if __name__ == "__main__":
    main()
