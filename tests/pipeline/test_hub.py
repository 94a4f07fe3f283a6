"""Against a small Hub of our own: what it answers becomes one sentence, and the token stays out of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from kontext_fast.pipeline.folder import TINY_FOLDER, check_folder
from kontext_fast.pipeline.hub import is_hub_id
from kontext_fast.pipeline.load import load

TOKEN = "hf_" + "s" * 34
ACCOUNT = f"Bearer {TOKEN}"
COMMIT = "0" * 40


class FakeHub(BaseHTTPRequestHandler):
    """Answers like the Hub: the organization in the path says what is wrong with the repository, which is `tiny`."""

    licensed: ClassVar[set[str | None]] = set()
    """Accounts that accepted the licence of `gated`."""
    down: ClassVar[bool] = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """What a person does on the Hub's pages, or the Hub by itself."""
        if self.path == "/gated/kontext/accept":
            self.licensed.add(self.headers["Authorization"])
        FakeHub.down = self.path == "/goes-down"
        self._answer(200, {})

    def do_GET(self) -> None:
        account = self.headers["Authorization"]
        if self.down or "/broken/" in self.path:
            self._answer(400, {"X-Error-Message": "no"})
        elif "/missing/" in self.path or ("/private/" in self.path and account != ACCOUNT):
            self._answer(401, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in self.path:
            files = [path for path in TINY_FOLDER.rglob("*") if path.is_file()]
            self._answer(200, {}, [{"type": "file", "oid": "0", **described(path)} for path in files])
        elif self.path.startswith("/api/models"):
            self._answer(200, {}, {"id": "org/name", "sha": COMMIT, "siblings": []})
        elif "/gated/" in self.path and account not in self.licensed:
            self._answer(401 if account is None else 403, {"X-Error-Code": "GatedRepo"})
        elif "/empty/" in self.path:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif "/other/" in self.path:
            self._file({"ETag": '"abc"'}, b'{"_class_name": "StableDiffusionPipeline"}')
        else:
            content = (TINY_FOLDER / self.path.partition("/resolve/")[2].partition("/")[2]).read_bytes()
            self._file({"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content)

    def _file(self, headers: dict[str, str], content: bytes) -> None:
        self._answer(200, {"X-Repo-Commit": COMMIT, **headers}, content)

    def _answer(self, status: int, headers: dict[str, str], body: object = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body or {"error": "no"}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def described(file: Path) -> dict[str, Any]:
    return {"path": file.relative_to(TINY_FOLDER).as_posix(), "size": file.stat().st_size}


PROGRAM = """
import os, sys
import httpx
from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.hub import download
for step in sys.argv[1:]:
    if step.startswith("HF_TOKEN="):
        os.environ["HF_TOKEN"] = step.removeprefix("HF_TOKEN=")
    elif step.startswith("/"):
        account = {"Authorization": f"Bearer {os.environ['HF_TOKEN']}"}
        httpx.post(os.environ["HF_ENDPOINT"] + step, headers=account).raise_for_status()
    else:
        try:
            print(download(step))
        except CheckpointUnavailable as error:
            import traceback
            print(error)
            traceback.print_exc()
assert "torch" not in sys.modules
"""


def ask(endpoint: str, cache: Path, *steps: str, **variables: str) -> list[str]:
    """What a fresh process says of each Hub id in `steps`, its folder or a sentence; a step may also set HF_TOKEN, or
    be a page of the Hub to post to. Nothing that it prints may hold the token."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_TOKEN": TOKEN, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *steps],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ERRORS = {
    "missing/kontext": "neither a local folder nor a checkpoint on the Hub",
    "empty/kontext": "no model_index.json",
    "other/model": "is a StableDiffusionPipeline",
    "broken/model": "status 400",
    "a--b/model": "neither a local folder",
}


def test_each_hub_error_becomes_one_sentence(hub: str, tmp_path: Path) -> None:
    sentences = ask(hub, tmp_path, *ERRORS)
    for sentence, (hub_id, words) in zip(sentences, ERRORS.items(), strict=True):
        assert words in sentence
        assert hub_id in sentence
        assert "tiny" in sentence


def test_hub_remedies_bring_the_checkpoint(hub: str, tmp_path: Path) -> None:
    steps = (
        *("HF_TOKEN=", "gated/kontext", f"HF_TOKEN={TOKEN}", "gated/kontext", "/gated/kontext/accept", "gated/kontext"),
        *("HF_TOKEN=hf_other", "private/kontext", f"HF_TOKEN={TOKEN}", "private/kontext"),
        *("/goes-down", "org/later", "/comes-back", "org/later"),
    )
    no_token, no_licence, gated, hidden, private, down, later = ask(hub, tmp_path, *steps)
    remedy = "accept its licence at https://huggingface.co/gated/kontext and set HF_TOKEN to a token of that account"
    assert remedy in no_token
    assert remedy in no_licence
    assert "check the name and HF_TOKEN" in hidden
    assert "status 400" in down
    assert "try again later" in down
    for folder in (gated, private, later):
        assert Path(folder).is_relative_to(tmp_path)
        check_folder(Path(folder), folder)
    assert load(gated, device="cpu").pipe.transformer.config.in_channels == 64


def test_missing_network_is_named_until_there_is_one(hub: str, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    (offline,) = ask(nowhere, tmp_path, "org/name", HF_HUB_OFFLINE="1")
    (unreachable,) = ask(nowhere, tmp_path, "org/name")
    for sentence in (offline, unreachable):
        assert "cannot be reached; connect to the network" in sentence
        assert "tiny" in sentence
    (folder,) = ask(hub, tmp_path, "org/name")
    assert Path(folder).is_relative_to(tmp_path)
    # From then on the local cache has it.
    assert ask(nowhere, tmp_path, "org/name", HF_HUB_OFFLINE="1") == [folder]


def test_cached_checkpoint_needs_no_token(hub: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--gated--kontext" / "snapshots" / COMMIT
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        (snapshot / part).mkdir(parents=True)
        (snapshot / part / "model.safetensors").write_bytes(b"weights")
    for part in ("tokenizer", "tokenizer_2"):
        (snapshot / part).mkdir()
        (snapshot / part / "tokenizer.json").write_text("{}")
    (snapshot / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert ask(hub, tmp_path, "gated/kontext", HF_TOKEN="") == [str(snapshot)]


def test_hub_ids_are_recognized_by_form() -> None:
    assert is_hub_id("black-forest-labs/FLUX.1-Kontext-dev")
    for other in ("tiny", "./a", "/a/b", "a/b/c", "a/", "~/b", "", "a b/c", "-a/b"):
        assert not is_hub_id(other)
