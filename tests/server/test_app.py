"""What surrounds the routes: keys, names of the server and pages of other sites; nothing is loaded for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kontext_fast.server.app import create_app
from kontext_fast.server.placement import WorkerPlan
from kontext_fast.server.pool import WorkerPool
from kontext_fast.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
KEYS = ("the-first-key-of-it", "the-second-key-of-it")


def app(**settings: Any) -> TestClient:
    """The app over workers that were never started."""
    chosen = ServerSettings(**settings)
    pool = WorkerPool(chosen, [WorkerPlan("cpu", "cpu", chosen.presets)], on_unusable=lambda _: None)
    return TestClient(create_app(chosen, pool), base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_each_key_opens_the_api(key: str, header: str) -> None:
    value = f"Bearer {key}" if header == "authorization" else key
    # 503: it was let in, and nothing is loaded.
    assert app(api_keys=KEYS).get("/v1/models", headers={header: value}).status_code == 503


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": KEYS[0]}])
@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/generations", "/inference"])
def test_request_without_a_key_is_refused(headers: dict[str, str], path: str) -> None:
    answer = app(api_keys=KEYS).post(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_probes_need_no_key() -> None:
    client = app(api_keys=KEYS)
    statuses = [client.get(path).status_code for path in ("/livez", "/metrics", "/readyz", "/health")]
    assert statuses == [200, 200, 503, 503]


def test_dashboard_asks_for_metrics_that_exist() -> None:
    text = app().get("/metrics").text
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    dashboard = json.loads((ROOT / "deploy/grafana/kontext.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"kontext_\w+", query)}
    assert len(asked) > 10
    histograms = {f"{name}_bucket" for name, kind in types.items() if kind == "histogram"}
    assert asked <= histograms | types.keys()


def test_loading_server_says_when_to_come_again() -> None:
    answer = app().post("/v1/images/generations", json={"prompt": "a circle"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "not_ready"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "169.254.169.254", "["])
def test_loopback_server_does_not_answer_to_other_names(host: str) -> None:
    assert app().get("/v1/models", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "kontext.example"])
def test_loopback_server_answers_to_its_names(host: str) -> None:
    assert app(allow_hosts=("kontext.example",)).get("/livez", headers={"host": host}).status_code == 200


def test_page_of_another_site_is_refused() -> None:
    headers = {"origin": "https://evil.example"}
    answer = app().post("/v1/images/generations", json={"prompt": "a circle"}, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_page_of_an_allowed_site_is_served() -> None:
    site = "https://friend.example"
    client = app(allow_origins=(site,))
    asked = {"origin": site, "access-control-request-method": "POST"}
    assert client.options("/v1/images/edits", headers=asked).headers["access-control-allow-origin"] == site
    answer = client.post("/v1/images/generations", json={"prompt": "a circle"}, headers={"origin": site})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (503, site)


def test_own_page_is_served() -> None:
    headers = {"origin": "http://127.0.0.1:8000"}
    assert app().post("/v1/images/generations", json={"prompt": "a"}, headers=headers).status_code == 503


def test_pages_forbid_everything_from_elsewhere() -> None:
    client = app()
    for path in ("/", "/docs", "/playground/playground.js"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "https://" not in answer.text.replace("https where the operator allows", "")
    assert client.get("/playground/..%2Fpages.py").status_code == 404


def test_openapi_names_every_error_and_parameter() -> None:
    schema = app().get("/openapi.json").json()
    edits = schema["paths"]["/v1/images/edits"]["post"]
    assert {"200", "400", "401", "413", "429", "503", "504"} <= set(edits["responses"])
    properties = edits["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"image", "image[]", "prompt", "n", "size", "stream", "partial_images", "seed", "preset"} <= set(properties)
