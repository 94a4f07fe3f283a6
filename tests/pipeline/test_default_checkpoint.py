"""Which checkpoint is used where none is named: never the small one in place of the real one, never on pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.errors import CheckpointUnavailable, Refused
from kontext_fast.pipeline import hub
from kontext_fast.pipeline.hub import checkpoint_for_pictures, default_checkpoint
from kontext_fast.pipeline.load import KONTEXT_DEV


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(hub, "cached_folder", lambda _: None)


def test_without_a_gpu_tiny_serves_its_own_items_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_checkpoint(None) == ("tiny", "there is no GPU")
    assert default_checkpoint("cpu") == ("tiny", "the device is the CPU")
    with pytest.raises(Refused, match=r"ruin a picture.*--checkpoint tiny"):
        checkpoint_for_pictures(None)


@pytest.mark.usefixtures("_gpu")
def test_gpu_without_token_or_weights_names_three_steps() -> None:
    for choose in (default_checkpoint, checkpoint_for_pictures):
        with pytest.raises(CheckpointUnavailable) as caught:
            choose(None)
        sentence = str(caught.value)
        assert sentence.index("accept the licence") < sentence.index("hf auth login") < sentence.index("run this again")
        assert f"https://huggingface.co/{KONTEXT_DEV}" in sentence


@pytest.mark.usefixtures("_gpu")
def test_cached_weights_need_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_folder", lambda _: Path())
    assert default_checkpoint(None) == (KONTEXT_DEV, "there is a GPU and the local cache has it")
    assert checkpoint_for_pictures("cuda") == KONTEXT_DEV


@pytest.mark.usefixtures("_gpu")
def test_token_brings_the_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    assert default_checkpoint(None) == (KONTEXT_DEV, "there is a GPU and a token")
