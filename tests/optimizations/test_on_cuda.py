"""What presets have on CUDA alone: in plans there and nowhere else, and the same bits for every kind of pipeline.

A tape stands in for a CUDA graph, so that the plan of a CUDA device runs on a CPU.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kontext_fast.engine.graphs import recording
from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.acceleration import _in_place_of_hooks, accelerate
from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.preset_file import write_preset
from kontext_fast.optimizations.presets import PRESETS, find_preset, resolve
from kontext_fast.optimizations.switching import sharing_groups
from kontext_fast.optimizations.techniques.device_pixels import DevicePixels
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.fused_vae import FusedVae
from kontext_fast.optimizations.techniques.text_graphs import TextGraphs
from kontext_fast.pipeline.device import Machine
from tests.engine.graphs.taped import TapeRecorder
from tests.optimizations.test_pipeline_classes import pipeline_of, run
from tests.pipelines import SIDE, picture, render, small_pipeline

CPU = Machine(device="cpu", memory_bytes=1, cxx="g++", cc="gcc", triton=True, torch="2.13.0", platform="linux-x86_64")
H100 = replace(CPU, device="cuda", gpu="NVIDIA H100", capability=(9, 0))
BOTH = ("text_graphs", "device_pixels")
WITH_BOTH = ("faithful", "precise", "balanced", "fast", "turbo", "tuned-10", "tuned-7")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    tapes = TapeRecorder()
    monkeypatch.setattr(recording, "recorder_for", lambda _: tapes)
    return tapes


def names(optimizations: Any) -> tuple[str, ...]:
    return tuple(optimization.name for optimization in optimizations)


def on_cuda(preset: str) -> tuple[Optimization, ...]:
    return (*PRESETS[preset].optimizations, *PRESETS[preset].on_cuda)


def test_plans_of_cuda_alone_have_what_presets_have_there() -> None:
    added = {name: names(preset.on_cuda) for name, preset in PRESETS.items() if preset.on_cuda}
    assert added == {**dict.fromkeys(WITH_BOTH, BOTH), "low_memory": ("device_pixels",)}
    for name, techniques in added.items():
        assert set(techniques) <= set(names(resolve(name, H100, architecture_only=True).optimizations)), name
        if name != "precise":  # refused on a CPU
            plan = resolve(name, CPU)
            assert names(plan.optimizations) == names(
                sorted(PRESETS[name].optimizations, key=lambda part: part.phase)
            ), name
            assert not any("text_graphs" in label for label in plan.labels)
    assert [applied.name for applied in resolve("turbo", H100).applied[-2:]] == list(BOTH)


def test_what_is_added_on_cuda_changes_no_image() -> None:
    assert {part.effect for preset in PRESETS.values() for part in preset.on_cuda} == {Effect.EXACT}


def test_variants_of_a_preset_keep_what_it_has_on_cuda() -> None:
    assert names(find_preset("turbo(computed=5)").on_cuda) == BOTH
    assert names(find_preset("turbo-without-text_graphs").on_cuda) == ("device_pixels",)
    assert "text_graphs" not in names(resolve("turbo-without-text_graphs", H100).optimizations)
    assert find_preset("turbo-without-engine").on_cuda == PRESETS["turbo"].on_cuda
    for machine in (CPU, H100):
        assert names(resolve("turbo-only-text_graphs", machine).optimizations) == ("text_graphs",)
        assert names(resolve("turbo-only-engine", machine).optimizations) == ("engine",)
    assert len(sharing_groups([PRESETS[name] for name in ("balanced", "fast", "turbo")], architecture_only=False)) == 1


def test_preset_file_has_techniques_for_cuda_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    write_preset(file, name="mine", summary="", optimizations=[Engine()], on_cuda=[TextGraphs(), DevicePixels()])
    assert names(find_preset(str(file)).on_cuda) == BOTH
    assert names(resolve(str(file), CPU).optimizations) == ("engine",)
    write_preset(file, name="mine", summary="", optimizations=[Engine()], on_cuda=[TextGraphs(), FusedVae()])
    with pytest.raises(InvalidInput, match="line 12: fused_vae changes images"):
        find_preset(str(file))


def test_encoders_of_an_offloaded_pipeline_are_streamed() -> None:
    pipe = small_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    plan = _in_place_of_hooks(resolve("faithful", H100), pipe, H100)
    assert {"offload", "device_pixels"} <= set(names(plan.optimizations))
    assert "text_graphs" not in names(plan.optimizations)


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_preset_of_cuda_has_the_bits_of_the_preset(preset: str, recorder: TapeRecorder) -> None:
    pipe = small_pipeline()
    with accelerate(pipe, preset, quiet=True):
        expected = [render(pipe, negative="blurry", steps=2), render(pipe, prompts=("a", "b"), seeds=(1, 2), steps=2)]
    with accelerate(pipe, on_cuda(preset), quiet=True) as acceleration:
        for _ in range(2):
            np.testing.assert_array_equal(render(pipe, negative="blurry", steps=2), expected[0])
            np.testing.assert_array_equal(render(pipe, prompts=("a", "b"), seeds=(1, 2), steps=2), expected[1])
        assert acceleration.facts["text_graphs"]["replays"] == 8
    assert recorder.recorded == 4


@pytest.mark.parametrize("absent", ["vae", "text"])
def test_pipelines_without_a_part_run_on_cuda(absent: str, recorder: TapeRecorder) -> None:
    whole = small_pipeline()
    embeds = whole.encode_prompt("make it red", None, max_sequence_length=48)[:2]
    parts = ("vae",) if absent == "vae" else ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe = type(whole)(**{**whole.components, **dict.fromkeys(parts)})
    side, image = (32, None) if absent == "vae" else (SIDE, picture())

    def latents() -> Any:
        return pipe(
            image=image, prompt_embeds=embeds[0], pooled_prompt_embeds=embeds[1], height=side, width=side,
            max_area=side * side, _auto_resize=False, num_inference_steps=1, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    with accelerate(pipe, "faithful", quiet=True):
        expected = latents()
    with accelerate(pipe, on_cuda("faithful"), quiet=True):
        assert torch.equal(latents(), expected)


def test_encoders_that_cannot_be_recorded_are_counted(recorder: TapeRecorder) -> None:
    pipe = small_pipeline()
    expected = render(pipe, steps=1)
    own = pipe.text_encoder_2.forward
    pipe.text_encoder_2.forward = lambda *args, **kwargs: own(*args, **kwargs)
    # As `compile()` leaves a module, without the seconds that compiling takes.
    pipe.text_encoder._compiled_call_impl = pipe.text_encoder._call_impl
    with ExitStack() as undo:
        facts = undo.enter_context(accelerate(pipe, [TextGraphs()], quiet=True)).facts["text_graphs"]
        np.testing.assert_array_equal(render(pipe, steps=1), expected)
        assert facts["unrecorded"] == {
            "text_encoder has a forward of its own": 1, "text_encoder_2 has a forward of its own": 1
        }  # fmt: skip
    assert recorder.recorded == 0


def test_encoder_on_another_device_is_not_recorded(recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    expected = render(pipe, steps=1)
    monkeypatch.setattr(recorder, "runs_on", lambda device: device.type == "cuda")
    with accelerate(pipe, [TextGraphs()], quiet=True) as acceleration:
        for _ in range(2):
            np.testing.assert_array_equal(render(pipe, steps=1), expected)
        assert set(acceleration.facts["text_graphs"]["unrecorded"]) == {"on the cpu"}
    assert recorder.recorded == 0


def test_text_is_not_first_where_an_encoder_is_elsewhere(recorder: TapeRecorder) -> None:
    pipe = small_pipeline()
    pipe.text_encoder_2.to("meta")
    with accelerate(pipe, [TextGraphs()], quiet=True):
        assert recorder.recorded == 0


def test_image_under_a_mask_is_read_as_before() -> None:
    for name, reads in (("FluxFillPipeline", 0), ("FluxImg2ImgPipeline", 1)):
        pipe = pipeline_of(name)
        stock = run(pipe, name, output_type="pil")
        with accelerate(pipe, [DevicePixels()], quiet=True) as acceleration:
            np.testing.assert_array_equal(run(pipe, name, output_type="pil")[0], stock[0])
            assert (acceleration.facts["device_pixels"]["read"], acceleration.facts["device_pixels"]["written"]) == (
                reads, 1
            )  # fmt: skip
