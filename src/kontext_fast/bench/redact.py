"""Keeps what belongs to the user out of text that is stored in records, which are published."""

from __future__ import annotations

import os
import re

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/\"':,()]+/)+")
_HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def redact(text: str) -> str:
    """`text` with absolute folders shortened to `.../` and access tokens removed."""
    for variable in _TOKEN_VARIABLES:
        if token := os.environ.get(variable):
            text = text.replace(token, "[token]")
    return _FOLDERS.sub(".../", _HUB_TOKEN.sub("[token]", text))
