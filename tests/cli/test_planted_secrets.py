"""Secrets, folders, names and places that are planted wherever a command may look, and searched for in every file that
it writes: records, pages, pictures, presets, locks and logs.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from kontext_fast.records.lock import HOLDER_NAME, locked_folder
from kontext_fast.tuning.request import TuneRequest
from tests.cli.conftest import Kontext
from tests.planted_secrets import FOLDER, NAMES, SECRETS, USER, check_clean, photograph, plant
from tests.server.processes import png, server
from tests.verify.fake_edits import write_dataset


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user with secrets in the environment and edits of their own; one line names a lost file."""
    home = tmp_path / "home" / USER
    plant(home, monkeypatch)
    photos = home / FOLDER
    dataset = write_dataset(photos, 16)
    lines = dataset.read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"image": photograph(photos).name})
    lost = {"image": str(photos / "lost.png"), "instruction": "make it red"}
    dataset.write_text("\n".join([*lines, json.dumps(lost)]))
    return photos


def test_search_finds_what_is_planted(tmp_path: Path, planted: Path) -> None:
    """A search that finds nothing anywhere would find no leak either."""
    out = tmp_path / "out"
    out.mkdir()
    with Image.open(planted / "cat.jpg") as image:
        image.save(out / "kept.jpg", exif=image.getexif())
        page = out / "page.html"
        payload = base64.b64encode((out / "kept.jpg").read_bytes()).decode()
        page.write_text(f'<img src="data:image/jpeg;base64,{payload}">')
    for leak in (out / "kept.jpg", page):
        with pytest.raises(AssertionError, match=leak.name):
            check_clean(out)
        leak.unlink()
    for text in (SECRETS["AWS_SECRET_ACCESS_KEY"], quote(USER), NAMES["HOSTNAME"], str(tmp_path / "x")):
        with pytest.raises(AssertionError):
            check_clean(out, text)


VERIFY = ("verify", "--checkpoint", "tiny", "--preset", "channels_last", "--items", "2", "--steps", "1", "--out")


def test_lock_names_a_command_without_secrets(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked_folder(out, f"kontext verify --dataset '{planted}/edits.jsonl' --token {SECRETS['HF_TOKEN']}"):
        holder = json.loads((out / HOLDER_NAME).read_text())
        assert holder["command"] == "kontext verify --dataset '.../edits.jsonl' --token [secret]"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_command_writes_what_is_planted(
    kontext: Kontext, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = TuneRequest.__init__.__kwdefaults__ or {}
    for name, steps in (("grid", 12), ("reference", 32)):
        monkeypatch.setitem(defaults, name, steps)
    out, own = tmp_path / "out", ("--dataset", planted / "edits.jsonl")
    tiny, photo = ("--checkpoint", "tiny", "--device", "cpu"), planted / "cat.jpg"
    short = ("--steps", 1, "--rounds", 1, "--items", 2, "--calls", 2, "--warmup", 0)
    lines: list[tuple[object, ...]] = [
        ("edit", photo, "make it red", *tiny, "--preset", "baseline", "--steps", 1, "-o", out / "red.png"),
        ("showcase", photo, "make it red", *tiny, "--steps", 1, "-o", out / "strip.png"),
        ("bench", *tiny, *own, "--presets", "baseline,fuse_qkv", *short, "--out", out / "bench"),
        (*VERIFY, out / "verify", *own, "--frontier", "--device", "cpu"),
        ("report", out / "bench", "--verification", out / "verify", "--out", out / "report", "--json"),
        *(("report", out / "bench", "--for", who, "--out", out / who) for who in ("blog", "paper", "business")),
        ("report", out / "verify", "--out", out / "quality"),
        ("cost", out / "bench", "--price", 2, "--json"),
        ("compare", out / "bench", out / "bench", "--json"),
        ("tune", *tiny, *own, "--evaluations", 3, "--items", 8, "--held-out", 8, "--steps", 4, "-o", out / "tune"),
    ]
    said = []
    for line in lines:
        outcome = kontext(*line)
        assert outcome.code in (0, 1), f"{line[0]}: {outcome.err}"
        said.append((outcome.out + outcome.err).replace(str(tmp_path), ""))
    (tmp_path / "serve").mkdir()
    key = "planted-key-of-the-api"
    with server(tmp_path / "serve", KONTEXT_API_KEY=key) as running:
        prompt = "a planted prompt that a stranger wrote"
        assert running.edit(prompt=prompt).status_code == 401
        running.client.headers["Authorization"] = f"Bearer {key}"
        answer = running.edit(photo.read_bytes(), prompt=prompt)
        assert answer.status_code == 200, answer.text
        running.edit(png(), prompt=prompt, steps=-1)
        running.edit(b"no picture " + SECRETS["HF_TOKEN"].encode(), prompt=prompt)
        picture = base64.b64decode(answer.json()["data"][0]["b64_json"])
        (out / "served.png").write_bytes(picture)
        answers = [running.client.get(path).text for path in ("/metrics", "/health", "/v1/models")]
        running.stop()
    log = running.log()
    assert key not in log
    assert prompt not in log + "".join(answers)
    (out / "server.log").write_text(log.replace(str(tmp_path), ""))
    # A line of the user's own file is named on their own screen.
    on_screen = [text.replace(FOLDER, "").replace(USER, "") for text in said]
    assert check_clean(out, *answers, *on_screen) > 100
