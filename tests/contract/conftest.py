"""What the contract tests share: one cache folder for compiled artifacts, and untouched images to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.pipelines import render, small_pipeline


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KONTEXT_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def untouched() -> np.ndarray[Any, Any]:
    """What a pipeline that nobody ever accelerated renders."""
    return render(small_pipeline())
