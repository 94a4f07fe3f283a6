"""Which checkpoint a server takes where none is named."""

from __future__ import annotations

import pytest

from kontext_fast.errors import CheckpointUnavailable, InvalidInput
from kontext_fast.pipeline import hub
from kontext_fast.pipeline.load import KONTEXT_DEV
from kontext_fast.server import placement


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "default_devices", lambda: ("cuda:0",))
    monkeypatch.setattr(hub, "cached_folder", lambda _: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


@pytest.mark.usefixtures("_gpu")
def test_missing_weights_are_refused_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointUnavailable, match="accept the licence"):
        placement.default_checkpoint()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    assert placement.default_checkpoint() == KONTEXT_DEV


def test_without_a_gpu_tiny_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "default_devices", lambda: ("cpu",))
    with pytest.raises(InvalidInput, match="--checkpoint tiny"):
        placement.default_checkpoint()
