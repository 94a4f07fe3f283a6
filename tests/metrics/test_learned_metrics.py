"""CLIP, DINO and LPIPS: the real code on small models, and the reason where there are no weights."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext_fast.datasets.base import Item
from kontext_fast.datasets.shapes import ShapesItem, held_out
from kontext_fast.metrics.base import Case, NotMeasured, Setting
from kontext_fast.metrics.clip_directional import ClipDirectional
from kontext_fast.metrics.clip_text import ClipText
from kontext_fast.metrics.dino import Dino
from kontext_fast.metrics.lpips import Lpips
from kontext_fast.pipeline.folder import TINY_FOLDER
from tests.metrics.cases import FreeItem, noise

needs_pair = pytest.mark.skipif(
    not (TINY_FOLDER / "clip" / "config.json").is_file(), reason="the CLIP pair of tiny is not bundled"
)
TINY = Setting(has_judge=True)


def _case(item: Item, output: Image.Image) -> Case:
    return Case(item, output)


def _single_answer(count: int) -> list[ShapesItem]:
    return [item for item in held_out(60, 3) if item.output_caption][:count]


@needs_pair
def test_clip_text_prefers_the_right_caption() -> None:
    items = _single_answer(16)
    right = ClipText(TINY).scores([_case(item, item.target) for item in items])
    wrong = ClipText(TINY).scores(
        [_case(item, other.target) for item, other in zip(items, items[1:] + items[:1], strict=True)]
    )
    assert np.mean(np.array(right, float)) > np.mean(np.array(wrong, float)) + 20


@needs_pair
def test_clip_text_is_100_cosines_with_named_weights() -> None:
    item = _single_answer(1)[0]
    metric = ClipText(TINY)
    metric.prepare()
    name, sha256 = metric.model()
    assert name == "CLIP of tiny"
    assert len(sha256) == 64
    (score,) = metric.scores([_case(item, item.target)])
    assert score is not None
    assert 1 < abs(score) <= 100


@needs_pair
def test_clip_directional_of_target_and_unedited_input() -> None:
    items = _single_answer(16)
    targets = ClipDirectional(TINY).scores([_case(item, item.target) for item in items])
    unedited = ClipDirectional(TINY).scores([_case(item, item.image) for item in items])
    assert np.mean(np.array(targets, float)) > 0.3
    assert unedited == [0.0] * len(items)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A DINOv2 of random weights in the layout of the real one."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56))
    model.save_pretrained(tmp_path / "dino")
    side = {"height": 56, "width": 56}
    BitImageProcessorPil(size={"shortest_edge": 56}, crop_size=side).save_pretrained(tmp_path / "dino")
    return tmp_path


def test_dino_of_the_input_is_one(weights: Path) -> None:
    metric = Dino(Setting(weights=weights))
    metric.prepare()
    item = FreeItem(image=noise(1))
    same, other = metric.scores([_case(item, noise(1)), _case(item, Image.new("RGB", (64, 48), "red"))])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert other is not None
    assert other < 0.9999
    assert len(metric.model()[1]) == 64


@pytest.mark.parametrize("metric", [ClipText, ClipDirectional, Dino])
def test_missing_weights_are_named_with_the_remedy(metric: type[ClipText], tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="hf download"):
        metric(Setting(weights=tmp_path)).prepare()


def test_hub_is_never_contacted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotMeasured, match=r"facebook/dinov2-small are not on this machine"):
        Dino(Setting()).prepare()


def test_weights_of_another_format_are_not_measured(weights: Path) -> None:
    (weights / "dino" / "model.safetensors").unlink()
    with pytest.raises(NotMeasured, match="safetensors"):
        Dino(replace(Setting(), weights=weights, device="cpu")).prepare()


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="needs no torchvision: pip uninstall torchvision"
)
def test_lpips_without_torchvision_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="pip install torchvision"):
        Lpips(Setting()).prepare()
