from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from kontext_fast.pipeline.load import load


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A shared pipeline; a test that changes it has to change it back."""
    return load("tiny", device="cpu").pipe


@pytest.fixture
def picture() -> Image.Image:
    """A square with something to see in every corner."""
    image = Image.linear_gradient("L").resize((128, 128))
    return Image.merge("RGB", (image, image.rotate(90), image.rotate(180)))
