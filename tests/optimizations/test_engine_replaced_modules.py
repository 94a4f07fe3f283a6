"""What is on a transformer that the engine would ignore is refused in whole sentences that name the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.techniques.engine import _Replaced, _require_untouched
from tests.pipelines import small_pipeline


@pytest.fixture
def transformer() -> Any:
    return small_pipeline(double=2).transformer


def another_forward(transformer: Any) -> None:
    transformer.forward = lambda: None


def compiled(transformer: Any) -> None:
    transformer._compiled_call_impl = transformer._call_impl


def another_class(transformer: Any) -> None:
    transformer.__class__ = type("Own", (type(transformer),), {"forward": lambda self: None})


@pytest.mark.parametrize(
    ("disturb", "said"),
    [
        (
            another_forward,
            "The transformer has a forward of its own, which the engine would ignore; take it off "
            "(del module.forward), then accelerate again.",
        ),
        (compiled, "The transformer is compiled already; load it again without torch.compile."),
        (another_class, "The forward of the transformer's class was replaced; put back the one of diffusers."),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_transformer_that_is_not_that_of_diffusers_is_refused(
    transformer: Any, disturb: Callable[[Any], None], said: str
) -> None:
    _require_untouched(transformer)
    disturb(transformer)
    with pytest.raises(InvalidInput) as refused:
        _require_untouched(transformer)
    assert str(refused.value) == said


def test_module_in_place_of_another_is_refused_in_every_block(transformer: Any) -> None:
    replaced = _Replaced(transformer)
    transformer.beside = torch.nn.Linear(1, 1)  # which no forward of diffusers calls
    replaced.require_undisturbed(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        own, block.attn.norm_q = block.attn.norm_q, torch.nn.Tanh()
        with pytest.raises(InvalidInput) as refused:
            replaced.require_undisturbed(transformer)
        assert str(refused.value).endswith(
            ".attn.norm_q is a Tanh in place of a RMSNorm, which the engine would ignore; put back what was there, "
            "then accelerate again."
        )
        block.attn.norm_q = own
    replaced.require_undisturbed(transformer)


def test_hook_says_what_would_ignore_it(transformer: Any) -> None:
    transformer.proj_out.register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidInput, match=r"^proj_out has a forward hook, which the engine would ignore; remove it"):
        _Replaced(transformer).require_undisturbed(transformer)


def test_attention_replaced_in_its_class_is_refused(transformer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = _Replaced(transformer)
    monkeypatch.setattr(FluxAttnProcessor, "__call__", lambda *_: None)
    with pytest.raises(InvalidInput) as refused:
        replaced.require_undisturbed(transformer)
    assert str(refused.value) == (
        "The attention of diffusers was replaced in its class, which the engine would ignore; put back what was there, "
        "then accelerate again."
    )
