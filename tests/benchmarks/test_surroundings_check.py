"""The check of what the GPU waits for: its arithmetic, and its times of an edit, which a CPU has too."""

from __future__ import annotations

import time

from benchmarks.gpu import surroundings_check
from kontext_fast.optimizations.acceleration import accelerate
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load
from tests import needs
from tests.pipelines import SIDE, picture, small_pipeline


def test_gaps_are_between_work_and_have_their_samples() -> None:
    work = [(0.5, 1.0, "a"), (1.4, 0.5, "within a, then longer"), (1.95, 0.05, "soon"), (3.0, 1.0, "c")]
    found = surroundings_check.idle(work, 5.0, [(0.1, "x"), (1.6, "busy"), (2.5, "y"), (2.6, "y"), (4.5, "z")])
    assert [(row["at"], row["ms"], row["before"], row["ran"]) for row in found["longest"]] == [
        (0.0, 0.5, "a", ["1x x"]),
        (2.0, 1.0, "c", ["2x y"]),
        (4.0, 1.0, "end of the call", ["1x z"]),
    ]
    assert (found["busy_ms"], found["in_gaps_ms"]) == (2.45, 2.5)


def test_samples_name_the_function_that_ran() -> None:
    # The first ones may still find the start of the thread that takes them.
    end = time.monotonic() + 10
    with surroundings_check._sampled() as samples:
        while not any("test_samples_name_the_function_that_ran" in where for _, where in samples):
            assert time.monotonic() < end, samples
            time.sleep(0.001)


def test_times_add_up_and_images_are_the_same() -> None:
    request = EditRequest("make the background red", picture(), steps=3, seed=0, size=(SIDE, SIDE))
    report = surroundings_check.measured(small_pipeline(), request, "turbo", 1, trace=False)
    times = report["ms"]
    assert len(report["image"]) == 1
    stages = ("text_encode", "vae_encode", "denoise", "vae_decode", "rest")
    assert abs(sum(times[stage] for stage in stages) - times["wall"]) < 1
    assert 0 < times["around"] < times["wall"]


@needs.gpu
def test_call_waits_twice_before_its_first_step_and_at_its_end() -> None:
    request = EditRequest("make the background red", picture(), steps=3, seed=0)
    pipe = load("tiny", device="cuda").pipe
    with accelerate(pipe, "turbo", quiet=True):
        for _ in range(3):
            edit(pipe, request)
        places = surroundings_check.waits(lambda: edit(pipe, request))
    functions = [place.rpartition(" < ")[2].rpartition(":")[0] for place in places]
    assert functions[:2] == ["transformer.prepare", "engine._begin"]
    assert functions[2] == "device_pixels._to_host"
    assert len(functions) <= 5
