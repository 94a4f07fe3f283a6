"""Which modules of the package execute on the two paths that everything else hangs on.

    python -m tools.call_path

The first is from `accelerate(pipe, "balanced")` to the first fused operation of the first step: on a GPU the first
launch of a kernel of ours, here the same operation in plain PyTorch. The second is one whole `kontext edit` of `tiny`
with the preset `baseline`, since what a preset adds is the first path. A module counts where one of its functions runs,
whatever its import executes. On CUDA a preset also records its text encoders and converts pixels there, which this
process, on a CPU, does not see.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import kontext_fast

PACKAGE = Path(kontext_fast.__file__).parent

MOST_TO_A_KERNEL = 14
MOST_OF_AN_EDIT = 15


class _Reached(Exception):
    """Ends a call at the operation that it was to reach."""


@contextmanager
def executed_modules() -> Iterator[list[str]]:
    """The modules of the package that execute a function in the body, in the order in which they first do."""
    modules: list[str] = []
    importing: defaultdict[int, int] = defaultdict(int)

    def note(frame: FrameType, event: str, _argument: object) -> None:
        thread = threading.get_ident()
        if frame.f_code.co_name == "<module>":
            importing[thread] += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not importing[thread]:
            name = _name(frame.f_code.co_filename)
            if name is not None and name not in modules:
                modules.append(name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield modules
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@cache
def _name(filename: str) -> str | None:
    """None for a file outside of the package."""
    file = Path(filename)
    if not file.is_relative_to(PACKAGE):
        return None
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


def to_a_kernel(preset: str = "balanced") -> list[str]:
    """From `accelerate` to the first operation that a kernel of ours computes on a GPU."""
    from kontext_fast.engine.ops import PortableOps
    from kontext_fast.optimizations.acceleration import accelerate
    from kontext_fast.pipeline.load import load

    pipe = load("tiny", device="cpu").pipe
    pipe.set_progress_bar_config(disable=True)
    side = pipe.vae.config.sample_size

    def reached(*_arguments: Any, **_keywords: Any) -> Any:
        raise _Reached

    operation, PortableOps.norm_modulate = PortableOps.norm_modulate, reached  # type: ignore[method-assign]
    try:
        with executed_modules() as modules:
            acceleration = accelerate(pipe, preset, quiet=True)
            try:
                pipe(prompt="a red circle", height=side, width=side, max_area=side**2, num_inference_steps=1,
                     max_sequence_length=pipe.tokenizer_2.model_max_length)  # fmt: skip
            except _Reached:
                pass
            else:
                raise RuntimeError(f"{preset} computed an image without the engine")
    finally:
        PortableOps.norm_modulate = operation  # type: ignore[method-assign]
    acceleration.revert()
    return modules


def of_an_edit() -> list[str]:
    """Of one `kontext edit`."""
    from PIL import Image

    from kontext_fast.cli.main import run

    with TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.new("RGB", (128, 128), "red").save(image)
        arguments = ["edit", str(image), "make the background blue", "--out", str(Path(folder) / "out.png")]
        with executed_modules() as modules:
            code = run([*arguments, "--checkpoint", "tiny", "--preset", "baseline", "--steps", "1", "--device", "cpu"])
    if code:
        raise RuntimeError(f"kontext edit ended with code {code}")
    return modules


def main() -> int:
    """Print both paths; exit code 1 where one of them is too long."""
    paths = (
        ("from accelerate(pipe, 'balanced') to a kernel", to_a_kernel(), MOST_TO_A_KERNEL),
        ("of one kontext edit of tiny, preset baseline", of_an_edit(), MOST_OF_AN_EDIT),
    )
    for title, modules, most in paths:
        print(f"{len(modules)} modules {title} (at most {most}):")
        print("".join(f"  {module}\n" for module in modules))
    return int(any(len(modules) > most for _, modules, most in paths))


if __name__ == "__main__":
    sys.exit(main())
