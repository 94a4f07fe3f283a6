"""Against a small Hub of our own: what it answers becomes one sentence, and the token stays out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from kontext_fast.pipeline.hub import is_hub_id

TOKEN = "hf_" + "s" * 34
COMMIT = "0" * 40


class FakeHub(BaseHTTPRequestHandler):
    """Answers like the Hub: the organization in the path says what is wrong with the repository."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/missing/" in self.path:
            self._answer(401, {"X-Error-Code": "RepoNotFound"})
        elif "/broken/" in self.path:
            self._answer(400, {"X-Error-Message": "no"})
        elif self.path.startswith("/api/models"):
            self._answer(200, {}, {"id": "org/name", "sha": COMMIT, "siblings": []})
        elif "/gated/" in self.path:
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        elif "/empty/" in self.path:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            headers = {"X-Repo-Commit": COMMIT, "ETag": '"abc"'}
            self._answer(200, headers, {"_class_name": "StableDiffusionPipeline"})

    def _answer(self, status: int, headers: dict[str, str], body: object = None) -> None:
        content = json.dumps(body or {"error": "no"}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
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


PROGRAM = """
import sys
from kontext_fast.errors import CheckpointUnavailable
from kontext_fast.pipeline.hub import download
try:
    print(download(sys.argv[1]))
except CheckpointUnavailable as error:
    import traceback
    print(error)
    traceback.print_exc()
assert "torch" not in sys.modules
"""


def ask(hub_id: str, endpoint: str, cache: Path, **variables: str) -> str:
    """The sentence that a fresh process ends with; nothing that it prints may hold the token."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_TOKEN": TOKEN, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, hub_id],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    sentence, *rest = done.stdout.splitlines()
    assert not rest
    return sentence


@pytest.mark.parametrize(
    ("hub_id", "words"),
    [
        ("gated/kontext", "accept its licence at https://huggingface.co/gated/kontext and set HF_TOKEN"),
        ("missing/kontext", "neither a local folder nor a checkpoint on the Hub"),
        ("empty/kontext", "no model_index.json"),
        ("other/model", "is a StableDiffusionPipeline"),
        ("broken/model", "status 400"),
        ("a--b/model", "neither a local folder"),
    ],
)
def test_each_hub_error_becomes_one_sentence(hub: str, tmp_path: Path, hub_id: str, words: str) -> None:
    sentence = ask(hub_id, hub, tmp_path)
    assert words in sentence
    assert hub_id in sentence
    assert "tiny" in sentence


@pytest.mark.parametrize(
    "variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "unreachable"]
)
def test_missing_network_is_reported_at_once(tmp_path: Path, variables: dict[str, str]) -> None:
    sentence = ask("org/name", variables.pop("HF_ENDPOINT", "http://127.0.0.1:9"), tmp_path, **variables)
    assert "cannot be reached" in sentence
    assert "tiny" in sentence


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
    assert ask("gated/kontext", hub, tmp_path, HF_TOKEN="") == str(snapshot)
    assert "is gated" in ask("gated/kontext", hub, tmp_path / "elsewhere", HF_TOKEN="")


def test_hub_ids_are_recognized_by_form() -> None:
    assert is_hub_id("black-forest-labs/FLUX.1-Kontext-dev")
    for other in ("tiny", "./a", "/a/b", "a/b/c", "a/", "~/b", "", "a b/c", "-a/b"):
        assert not is_hub_id(other)
