"""Secrets that tests plant in the environment, folders and pictures, and the search for them in what was written."""

from __future__ import annotations

import base64
import json
import platform
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

USER = "janine planted"
FOLDER = "planted photos"
SECRETS = {
    "HF_TOKEN": "hf_" + "pLaN7" * 7,
    "CUDA_API_TOKEN": "planted-cuda-token-7Zk2",
    "TORCH_HUB_PASSWORD": "planted torch password",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+key==9Xw2",
    "OMP_LICENSE_KEY": "planted-license-in-omp",
    "TORCHINDUCTOR_CACHE_DIR": f"/srv/{FOLDER}/cache",
}
NAMES = {"USER": USER, "LOGNAME": USER, "HOSTNAME": "planted-host.example"}
OF_PICTURE = "planted photographer"
"""In the EXIF of an input, beside the place where it was taken."""
_PAYLOAD = re.compile(rb"base64,([A-Za-z0-9+/=]{40,})")


def plant(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets, a home, a user and a host in the environment."""
    for name, value in (SECRETS | NAMES | {"HOME": str(home)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "node", lambda: NAMES["HOSTNAME"])
    monkeypatch.setattr(socket, "gethostname", lambda: NAMES["HOSTNAME"])


def photograph(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x013B] = OF_PICTURE
    exif.get_ifd(0x8825)[29] = "2001:02:03 planted"
    file = folder / "cat.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file, exif=exif, comment=OF_PICTURE.encode())
    return file


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below, with what its pictures hold compressed, and with pictures inside of pages."""
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        yield str(file), content
        for payload in _PAYLOAD.findall(content):
            yield f"{file}, a picture inside", base64.b64decode(payload + b"=" * (-len(payload) % 4))
        if file.suffix in (".png", ".jpg", ".webp"):
            with Image.open(file) as image:
                image.load()
                yield f"{file}, its texts", f"{image.info} {dict(image.getexif())}".encode()


def check_clean(folder: Path, *more: str) -> int:
    """Search all files in `folder` and the strings `more`; returns how many there were."""
    words = [*SECRETS.values(), *NAMES.values(), FOLDER, OF_PICTURE, "2001:02:03", str(folder.parent)]
    if len(platform.uname().node) >= 8:
        words.append(platform.uname().node)
    forms = {form.encode() for word in words for form in (word, quote(word), json.dumps(word)[1:-1])}
    searched = [*contents(folder), *((f"text {number}", text.encode()) for number, text in enumerate(more))]
    leaks = [f"{name}: {form!r}" for name, content in searched for form in forms if form in content]
    assert not leaks, leaks
    return len(searched)
