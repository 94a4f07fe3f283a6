"""The engine behind a user's own pipeline: requests, states, refusals and what is reported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import HookRegistry

from kontext_fast.engine.dispatch import require_dtype
from kontext_fast.engine.step_reuse import Schedule
from kontext_fast.engine.transformer import Branch
from kontext_fast.engine.weights import SourceWeights
from kontext_fast.errors import Cancelled, InvalidInput, KontextError, Refused
from kontext_fast.optimizations.acceleration import Acceleration, accelerate
from kontext_fast.optimizations.base import Effect, Optimization
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.registry import build
from kontext_fast.optimizations.techniques.engine import Engine, require_engine, save_quantized
from kontext_fast.optimizations.techniques.step_reuse import StepReuse
from kontext_fast.pipeline.device import Machine
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.lora import load_lora
from kontext_fast.records.schema import EMULATED
from tests.optimizations.engine_steps import Remembering
from tests.pipelines import SIDE, picture, render, small_pipeline

STEPS = 6
RED, REMOVE = "make the background red", "remove the circle"
FIRST: dict[str, Any] = {"prompts": (RED,), "seeds": (1,)}
SECOND: dict[str, Any] = {"prompts": (REMOVE,), "seeds": (2,)}
BOTH: dict[str, Any] = {"prompts": (RED, REMOVE), "seeds": (1, 2)}
GUIDED: dict[str, Any] = {**BOTH, "negative": "blurry"}

Images = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline(double=2, single=2)


def run(
    pipe: Any, chosen: Sequence[Optimization], images: dict[str, Any] = FIRST, steps: int = STEPS
) -> tuple[Images, Acceleration]:
    with accelerate(pipe, chosen, quiet=True) as acceleration:
        return render(pipe, steps=steps, **images), acceleration


@pytest.mark.parametrize("images", [FIRST, BOTH, GUIDED], ids=["one", "batch", "true-cfg"])
def test_engine_renders_what_the_pipeline_renders(pipe: Any, images: dict[str, Any]) -> None:
    result, acceleration = run(pipe, [Engine()], images)
    np.testing.assert_allclose(result, render(pipe, steps=STEPS, **images), rtol=0, atol=1e-3)
    assert acceleration.last_step_kinds() == ["full"] * STEPS


def test_engine_runs_text_to_image(pipe: Any) -> None:
    def generate() -> Images:
        images: Images = pipe(
            prompt=RED, height=SIDE, width=SIDE, max_area=SIDE * SIDE, num_inference_steps=3, max_sequence_length=48,
            generator=torch.Generator().manual_seed(3), output_type="np",
        ).images  # fmt: skip
        return images

    untouched = generate()
    with accelerate(pipe, [Engine()], quiet=True) as acceleration:
        np.testing.assert_allclose(generate(), untouched, rtol=0, atol=1e-3)
        assert acceleration.last_step_kinds() == ["full"] * 3


@pytest.mark.parametrize("images", [FIRST, GUIDED], ids=["one", "true-cfg"])
def test_step_reuse_without_skips_is_bit_identical(pipe: Any, images: dict[str, Any]) -> None:
    result, acceleration = run(pipe, [Engine(), StepReuse(computed=1)], images)
    np.testing.assert_array_equal(result, run(pipe, [Engine()], images)[0])
    assert acceleration.last_step_kinds() == ["full"] * STEPS


def test_step_kinds_and_counts_follow_the_schedule(pipe: Any) -> None:
    _, acceleration = run(pipe, [Engine(), StepReuse(computed=(0, 1, 4))], GUIDED)
    assert acceleration.last_step_kinds() == ["full", "full", "skipped", "skipped", "full", "skipped"]
    assert acceleration.facts["step_reuse"]["computed_steps"] == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("faithful", {"full": 28}),
        ("balanced", {"full": 28}),
        ("fast", {"full": 11, "skipped": 17}),
        ("low_memory", {"full": 28}),
        ("turbo", {"full": 9, "skipped": 19}),
    ],
)
def test_presets_compute_the_stated_steps_of_28(preset: str, counts: dict[str, int]) -> None:
    pipe = small_pipeline()
    with accelerate(pipe, preset, quiet=True) as acceleration:
        render(pipe, steps=28)
        assert Counter(acceleration.last_step_kinds()) == counts


REUSE: tuple[Optimization, ...] = (Engine(), StepReuse(computed=2))


def test_sample_of_a_batch_equals_the_sample_alone(pipe: Any) -> None:
    alone = [run(pipe, REUSE, images) for images in (FIRST, SECOND)]
    together, acceleration = run(pipe, REUSE, BOTH)
    np.testing.assert_allclose(together, np.concatenate([images for images, _ in alone]), rtol=0, atol=1e-3)
    counts = [one.facts["step_reuse"]["computed_steps"][0][0] for _, one in alone]
    assert acceleration.facts["step_reuse"]["computed_steps"] == [counts] == [[4, 4]]
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_true_cfg_keeps_separate_states(pipe: Any) -> None:
    """With the same text on both sides, each branch must do as an edit without true CFG does."""
    plain, alone = run(pipe, REUSE, FIRST)
    guided, both = run(pipe, REUSE, {**FIRST, "negative": RED})
    counts = alone.facts["step_reuse"]["computed_steps"]
    assert both.facts["step_reuse"]["computed_steps"] == [*counts, *counts]
    assert counts[0][0] < STEPS
    np.testing.assert_allclose(guided, plain, rtol=0, atol=1e-3)
    # And two texts are two branches that do differ.
    assert not np.allclose(run(pipe, REUSE, {**FIRST, "negative": REMOVE})[0], plain, atol=1e-2)


def test_new_reference_changes_the_image(pipe: Any) -> None:
    def edited(seed: int) -> Images:
        images: Images = pipe(
            image=picture(seed), prompt=RED, height=SIDE, width=SIDE, max_area=SIDE * SIDE, _auto_resize=False,
            num_inference_steps=4, max_sequence_length=48, generator=torch.Generator().manual_seed(0), output_type="np",
        ).images  # fmt: skip
        return images

    with accelerate(pipe, REUSE, quiet=True):
        first = edited(0)
        second = edited(1)
    with accelerate(pipe, REUSE, quiet=True):
        np.testing.assert_array_equal(edited(1), second)
    assert not np.array_equal(first, second)


def test_prompt_replaced_by_a_callback_is_used(pipe: Any) -> None:
    def edited() -> Images:
        def halve(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}

        images: Images = pipe(
            image=picture(), prompt=RED, height=SIDE, width=SIDE, max_area=SIDE * SIDE, _auto_resize=False,
            num_inference_steps=3, max_sequence_length=48, generator=torch.Generator().manual_seed(0), output_type="np",
            callback_on_step_end=halve, callback_on_step_end_tensor_inputs=["prompt_embeds"],
        ).images  # fmt: skip
        return images

    untouched = edited()
    with accelerate(pipe, [Engine()], quiet=True):
        np.testing.assert_allclose(edited(), untouched, rtol=0, atol=1e-3)


def test_cancelled_edit_leaves_no_state(pipe: Any) -> None:
    asked: list[bool] = []

    def after_two() -> bool:
        asked.append(True)
        return len(asked) > 2

    request = EditRequest(RED, picture(), steps=4, seed=1, size=(SIDE, SIDE))
    with accelerate(pipe, REUSE, quiet=True):
        whole = edit(pipe, request)
        with pytest.raises(Cancelled):
            edit(pipe, request, should_stop=after_two)
        again = edit(pipe, request)
    assert whole.step_kinds == again.step_kinds == ("full", "skipped", "full", "full")
    assert whole.images[0].tobytes() == again.images[0].tobytes()


def test_transformer_is_the_original_outside_of_requests(pipe: Any) -> None:
    config, generator = pipe.transformer.config, torch.Generator().manual_seed(0)
    arguments = {
        "hidden_states": torch.randn(1, 4, config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(1, 3, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([2.5]),
        "img_ids": torch.ones(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    with torch.no_grad():
        expected = pipe.transformer(**arguments).sample
        with accelerate(pipe, "turbo", quiet=True):
            assert torch.equal(pipe.transformer(**arguments).sample, expected)


def test_weights_are_checked_while_the_first_step_runs(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    step, verify = Branch.step, SourceWeights.verify
    monkeypatch.setattr(Branch, "step", lambda *args: order.append("step") or step(*args))
    monkeypatch.setattr(SourceWeights, "verify", lambda *args: order.append("check") or verify(*args))
    with accelerate(pipe, [Engine()], quiet=True):
        render(pipe, steps=2)
        assert order == ["step", "check", "step"]
        monkeypatch.setattr(Branch, "step", lambda *_: pytest.fail("the step failed"))
        monkeypatch.setattr(SourceWeights, "verify", lambda *_: (_ for _ in ()).throw(InvalidInput("they changed")))
        with pytest.raises(InvalidInput, match="they changed"):
            render(pipe, steps=2)


def test_lora_added_later_is_refused_until_it_is_removed(pipe: Any) -> None:
    from peft import LoraConfig

    with accelerate(pipe, [Engine()], quiet=True):
        whole = render(pipe)
        with pytest.raises(InvalidInput, match="load the LoRA before"), load_lora(pipe, "lora.safetensors"):
            pass
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        with pytest.raises(InvalidInput, match="not fused"):
            render(pipe)
        pipe.transformer.delete_adapters("default")
        pipe.transformer.unload_lora()
        np.testing.assert_array_equal(render(pipe), whole)


def test_lora_fused_before_is_in_the_engine() -> None:
    from peft import LoraConfig

    pipe = small_pipeline()
    untouched = render(pipe)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    pipe.transformer.fuse_lora()
    pipe.transformer.unload_lora()
    fused = render(pipe)
    with accelerate(pipe, "faithful", quiet=True):
        np.testing.assert_allclose(render(pipe), fused, rtol=0, atol=1e-3)
    assert np.abs(fused - untouched).max() > 1e-2


def test_state_of_hooks_is_forgotten_after_a_call_as_in_stock() -> None:
    """Of modules that run as they are; on the others hooks are refused."""
    pipe, hook = small_pipeline(), Remembering()
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.pos_embed).register_hook(hook, "remembering")
    render(pipe, steps=1)
    assert hook.resets == 1
    with accelerate(pipe, "faithful", quiet=True):
        render(pipe, steps=1)
        assert hook.resets == 2
        pipe.maybe_free_model_hooks()  # outside of a call
        assert hook.resets == 3
    render(pipe, steps=1)
    assert hook.resets == 4
    assert "_reset_stateful_cache" not in vars(pipe.transformer)


def test_hooks_and_replaced_forwards_are_refused() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module
    from diffusers import FirstBlockCacheConfig

    hooked, cached = small_pipeline(), small_pipeline(double=2)
    add_hook_to_module(hooked.transformer, ModelHook())
    cached.transformer.enable_cache(FirstBlockCacheConfig())
    for pipe in (hooked, cached):
        with pytest.raises(InvalidInput, match=r"take (it|them) off"):
            accelerate(pipe, "faithful", quiet=True)


def test_ip_adapter_is_refused_in_its_request(pipe: Any) -> None:
    common: dict[str, Any] = {"height": 32, "width": 32, "max_area": 1024, "max_sequence_length": 48}
    with accelerate(pipe, [Engine()], quiet=True):
        with pytest.raises(InvalidInput, match="IP-Adapter"):
            pipe(prompt=RED, num_inference_steps=1, joint_attention_kwargs={"ip_hidden_states": []}, **common)
        pipe(prompt=RED, num_inference_steps=1, joint_attention_kwargs={"scale": 1.0}, **common)


def test_corrector_is_refused_without_eulers_method(pipe: Any) -> None:
    euler = pipe.scheduler
    try:
        pipe.scheduler = type(euler).from_config(euler.config, stochastic_sampling=True)
        with pytest.raises(InvalidInput, match=r"corrector=False"):
            run(pipe, [Engine(), StepReuse(computed=2)])
        run(pipe, [Engine(), StepReuse(computed=2, corrector=False)])
    finally:
        pipe.scheduler = euler


def test_corrector_reduces_the_distance_to_all_steps(pipe: Any) -> None:
    full, _ = run(pipe, [Engine()], steps=12)
    near, far = (
        np.abs(run(pipe, [Engine(), StepReuse(order=0, computed=3, corrector=corrects)], steps=12)[0] - full).mean()
        for corrects in (True, False)
    )
    assert near < far


def test_unannounced_timesteps_are_an_error(pipe: Any) -> None:
    from kontext_fast.optimizations.techniques.engine import engine_of

    def shift(step: int) -> None:
        if step == 0:
            forward = engine_of(pipe.transformer)
            assert forward is not None
            request = forward._calls.current
            assert request is not None
            request.memory["engine"][0].timesteps[2:] += 1e-3

    with accelerate(pipe, [Engine()], quiet=True):
        with pytest.raises(KontextError, match="other timesteps"):
            render(pipe, on_step=shift)
        render(pipe)


def test_times_are_rounded_as_the_pipeline_rounds_them() -> None:
    """In bfloat16, where others would be said to be unannounced; a schedule gets the noise levels as they are."""
    pipe = small_pipeline().to(torch.bfloat16)
    with accelerate(pipe, [Engine()], quiet=True) as acceleration, ExitStack() as undo:
        levels: list[Sequence[float]] = []

        def note(scheduler: Any, sigmas: Sequence[float]) -> Schedule:
            levels.append(sigmas)
            return StepReuse(computed=1)._schedule(scheduler, sigmas)

        require_engine(pipe.transformer, "a test").follow(note, undo)
        assert np.isfinite(render(pipe)).all()
        np.testing.assert_allclose(levels, [pipe.scheduler.sigmas.tolist()], rtol=1e-6)
        assert levels[0][-1] == 0
        assert acceleration.facts["engine"] == {
            "kernel": "portable", "attention_kernel": "native", "quantized": None, "mlp_scales": None, "host_bytes": 0,
            "as_stored": None, "step_graphs": None,
        }  # fmt: skip


def test_stored_fp8_weights_give_the_same_image_and_record(tmp_path: Path) -> None:
    pipe, file = small_pipeline(), tmp_path / "fp8.safetensors"
    untouched = render(pipe)
    with pytest.raises(InvalidInput, match="does not run on the engine"):
        save_quantized(pipe, file)
    with accelerate(pipe, [Engine(precision="fp8")], quiet=True) as acceleration:
        quantized = render(pipe)
        save_quantized(pipe, file)
        plan = acceleration.plan
        assert acceleration.facts["engine"]["quantized"] == "now"
    stored = Engine(precision="fp8", quantized_file=file)
    with accelerate(pipe, [stored], quiet=True) as acceleration:
        np.testing.assert_array_equal(render(pipe), quantized)
        assert acceleration.facts["engine"]["quantized"] == "loaded"
        assert acceleration.plan.content_hash == plan.content_hash
        assert str(tmp_path) not in json.dumps(stored.parameters())
    pipe.transformer.transformer_blocks[0].attn.to_q.weight.data[0, 0] += 1
    with pytest.raises(InvalidInput, match="made from other weights"):
        accelerate(pipe, [stored], quiet=True)
    pipe.transformer.transformer_blocks[0].attn.to_q.weight.data[0, 0] -= 1
    np.testing.assert_allclose(render(pipe), untouched, rtol=0, atol=1e-3)
    assert not np.array_equal(quantized, untouched)


def machine(**facts: Any) -> Machine:
    able: dict[str, Any] = {"device": "cpu", "memory_bytes": 2**34, "cxx": "g++", "cc": "gcc", "triton": True}
    return Machine(**{**able, "torch": "2.13.0", "platform": "linux-x86_64", **facts})


def test_gpu_without_fused_kernels_never_emulates_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontext_fast.engine.dispatch.has_fused_kernels", lambda: False)
    gpu = machine(device="cuda", gpu="H200", capability=(9, 0))
    for preset in ("balanced", "fast", "turbo"):
        with pytest.raises(Refused, match=r"needs the fused kernels and so Triton; run `pip install triton`"):
            resolve(preset, gpu)
    with pytest.raises(Refused, match=r"fused_vae on a GPU needs Triton"):
        resolve("faithful", gpu)
    assert resolve([Engine()], gpu).labels == ("kernel: portable (plain PyTorch, not the fused kernels)",)


@pytest.mark.parametrize(
    ("engine", "facts", "remedy"),
    [
        (Engine(precision="fp8"), {"device": "cuda", "capability": (8, 0)}, "needs compute capability 8.9.*faithful"),
        (Engine(), {"device": "cuda", "capability": (7, 5)}, "needs compute capability 8.0"),
        (Engine(), {"device": "mps"}, "not supported on mps"),
        (Engine(attention="cudnn"), {}, "use attention=auto"),
    ],
)
def test_unfit_machine_is_refused_with_a_remedy(engine: Engine, facts: dict[str, Any], remedy: str) -> None:
    with pytest.raises(Refused, match=remedy):
        resolve([engine], machine(**facts))


def test_gpu_accepts_bfloat16_only() -> None:
    require_dtype("cpu", torch.float32)
    require_dtype("cuda", torch.bfloat16)
    with pytest.raises(InvalidInput, match="not float32; load the pipeline with dtype"):
        require_dtype("cuda", torch.float32)


def test_emulation_is_labelled_in_plan_and_facts(pipe: Any) -> None:
    fp8 = [Engine(precision="fp8")]
    assert resolve(fp8, machine()).labels == (EMULATED,), "reports know it by this very word"
    assert EMULATED in resolve("balanced", machine()).labels
    assert EMULATED not in resolve("faithful", machine()).labels
    with accelerate(pipe, "balanced", quiet=True) as acceleration:
        assert acceleration.facts["engine"]["kernel"] == "emulated"
        assert EMULATED in acceleration.describe()


def test_effect_depends_on_the_precision() -> None:
    assert Engine().effect is Effect.NUMERIC
    effects = {name: resolve(name, machine()).applied[0].effect for name in ("faithful", "balanced")}
    assert effects == {"faithful": "numeric", "balanced": "lossy"}


def test_label_states_the_schedule() -> None:
    (label,) = resolve([Engine(), StepReuse()], machine()).labels
    assert "11 of 28 steps computed at 28 (0, 3, 6, 9, 12, 15, 18, 21, 24, 26, 27)" in label
    assert resolve([Engine(), StepReuse()], machine(), architecture_only=True).labels == (label,)


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("engine", {"precision": "int4"}, "precision"),
        ("engine", {"attention": "fastest"}, "attention"),
        ("engine", {"quantized_file": "x.safetensors"}, "choose precision=fp8"),
        ("step_reuse", {"computed": [1]}, "step 0"),
        ("step_reuse", {"computed": 0}, "computed"),
        ("step_reuse", {"computed": None}, "computed"),
        ("step_reuse", {"threshold": 0.1}, "threshold"),
        ("step_reuse", {"computed": [0], "warmup_share": 0.5}, "leave out warmup_share"),
        ("step_reuse", {"order": 2}, "order"),
    ],
)
def test_bad_parameters_are_invalid_input_in_one_line(name: str, parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as error:
        build(name, parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["fuse_qkv", "first_block_cache", "compile"])
def test_replaced_optimizations_conflict_with_the_engine(other: str) -> None:
    with pytest.raises(InvalidInput, match=f"engine and {other} exclude each other"):
        resolve([build(other, {}), Engine()], machine())


def test_parameters_rebuild_the_same_optimization() -> None:
    for one in (*REUSE, Engine(precision="fp8"), StepReuse(computed=(0, 2))):
        assert build(one.name, json.loads(json.dumps(one.parameters()))) == one
