"""`kontext serve` as its users meet it: a process of its own with the checkpoint `tiny`, spoken to over HTTP.

The tests share one server; the last one ends it.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import psutil
import pytest
from PIL import Image

from kontext_fast.datasets.shapes import held_out
from kontext_fast.pipeline.edit import EditRequest, edit
from kontext_fast.pipeline.load import load
from tests.server.hostile_images import bomb
from tests.server.loras import write_lora
from tests.server.processes import RunningServer, png, server, until

ITEM = held_out(1)[0]
PROMPT = ITEM.instruction
PHOTO = ITEM.render(128)
LONG = 300
"""Steps of an edit that is still running when a test looks at it."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--max-steps", str(LONG), "--max-upload", "2", "--upload-time", "2", "--queue", "16")
    folder = tmp_path_factory.mktemp("server")
    write_lora(folder / "ink.safetensors")
    with server(folder, *options, "--lora", "ink=ink.safetensors:2") as started:
        yield started


@pytest.fixture(scope="module")
def client(running: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)


def opened(content: str) -> Image.Image:
    with Image.open(BytesIO(base64.b64decode(content))) as image:
        image.load()
        return image


def ask(client: openai.OpenAI, **parameters: Any) -> Any:
    """An edit of PHOTO."""
    ours = {name: parameters.pop(name) for name in ("seed", "steps", "preset", "unheard_of") if name in parameters}
    values: dict[str, Any] = {"image": png(PHOTO), "prompt": PROMPT} | parameters
    return client.images.edit(**values, extra_body=ours)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's form and nothing of the server's inside."""
    (body,) = response.json().values()
    assert set(body) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "/src/" not in response.text
    return dict(body)


def long_edit(running: RunningServer) -> socket.socket:
    """A connection with an edit that runs for long."""
    body = (
        f'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{PROMPT}\r\n'
        f'--b\r\nContent-Disposition: form-data; name="steps"\r\n\r\n{LONG}\r\n'
        '--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
    ).encode() + png(PHOTO)
    body += b"\r\n--b--\r\n"
    connection = connect(running)
    connection.sendall(_head("multipart/form-data; boundary=b", len(body)) + body)
    until(lambda: running.health()["running"] == 1)
    return connection


def connect(running: RunningServer) -> socket.socket:
    address = urlsplit(running.url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), 60)


def _head(kind: str, length: int) -> bytes:
    return (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_openai_client_makes_two_images(client: openai.OpenAI) -> None:
    answer = ask(client, n=2, seed=5, model="gpt-image-1", user="someone", quality="auto", background="auto")
    assert [opened(image.b64_json).size for image in answer.data] == [(128, 128)] * 2
    assert answer.data[0].b64_json != answer.data[1].b64_json
    assert (answer.size, answer.output_format, answer.background) == ("128x128", "png", "opaque")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    details = answer.kontext
    assert (details["seed"], details["preset"], details["steps"]) == (5, "baseline", 1)
    assert details["run_s"] > 0
    assert details["queue_s"] >= 0
    assert details["verdict"]["sentence"]
    assert "synthetic world" in details["caution"]
    assert ask(client, seed=6).data[0].b64_json == answer.data[1].b64_json


def test_image_in_a_list_and_other_formats_are_served(client: openai.OpenAI) -> None:
    answer = ask(client, image=[png(PHOTO)], output_format="jpeg", output_compression=80, size="64x96")
    image = opened(answer.data[0].b64_json)
    assert (image.format, image.size) == ("JPEG", (64, 96))


def test_openai_client_generates(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red circle", output_format="webp")
    assert answer.data is not None
    assert opened(str(answer.data[0].b64_json)).format == "WEBP"


def test_stream_has_partial_images_that_near_the_result(client: openai.OpenAI) -> None:
    events = list(ask(client, stream=True, partial_images=3, seed=1, steps=12))
    *partial, completed = events
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert completed.type == "image_edit.completed"
    assert completed.kontext["preview_s"] > 0
    pictures = [np.asarray(opened(event.b64_json), np.float32) for event in events]
    distances = [float(np.abs(picture - pictures[-1]).mean()) for picture in pictures]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > distances[2] > 0
    plain = ask(client, seed=1, steps=12)
    assert plain.data[0].b64_json == completed.b64_json


def test_stream_tells_progress_where_it_is_asked_for(running: RunningServer) -> None:
    response = running.edit(stream="true", progress="true", steps=3)
    names = re.findall(r"^event: (\S+)", response.text, re.MULTILINE)
    assert names == ["kontext.started", *["kontext.step"] * 3, "image_edit.completed"]
    assert response.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"size": "100x100"}, "size"),
        ({"size": "4096x4096"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 5}, "n"),
        ({"mask": png(PHOTO)}, "mask"),
        ({"input_fidelity": "high"}, "input_fidelity"),
        ({"quality": "high"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 2}, "partial_images"),
        ({"image": [png(PHOTO), png(PHOTO)]}, "image"),
        ({"image": b"no image"}, "image"),
        ({"preset": "turbo"}, "preset"),
        ({"steps": LONG + 1}, "steps"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"prompt": "word " * 200}, None),
    ],
)
def test_openai_client_is_told_which_parameter_is_wrong(
    client: openai.OpenAI, parameters: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, **parameters)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


def test_served_image_is_the_library_s_alone_and_under_load(running: RunningServer) -> None:
    import torch

    torch.set_num_threads(1)
    pipe = load("tiny", device="cpu").pipe
    expected = {seed: edit(pipe, EditRequest(PROMPT, PHOTO, steps=2, seed=seed)).images[0] for seed in range(4)}

    def served(seed: int) -> bytes:
        answer = running.edit(png(PHOTO), prompt=PROMPT, seed=seed, steps=2).json()
        return opened(answer["data"][0]["b64_json"]).tobytes()

    assert served(0) == expected[0].tobytes()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(served, range(4))) == [expected[seed].tobytes() for seed in range(4)]


def test_ten_edits_at_once_have_ten_answers(running: RunningServer) -> None:
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda seed: running.edit(seed=seed), range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert [answer.json()["kontext"]["seed"] for answer in answers] == list(range(10))


def test_aborting_one_of_five_leaves_four_answers(running: RunningServer) -> None:
    leaving = long_edit(running)
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(running.edit) for _ in range(4)]
        until(lambda: running.health()["waiting"] == 4)
        leaving.close()
        assert [answer.result().status_code for answer in answers] == [200] * 4


def test_client_that_leaves_frees_the_worker(running: RunningServer) -> None:
    before = running.metric("kontext_cancelled_total", phase="running")
    leaving = long_edit(running)
    leaving.close()
    until(lambda: running.metric("kontext_cancelled_total", phase="running") == before + 1)
    answer = running.edit(steps=1).json()
    # A long edit takes LONG steps; this one waited for the end of one of them.
    assert answer["kontext"]["queue_s"] < LONG * answer["kontext"]["run_s"] / 4
    assert all(worker["restarts"] == 0 for worker in running.health().get("workers", ()))


def test_deadline_that_cannot_be_kept_is_refused(running: RunningServer) -> None:
    data = {"prompt": PROMPT, "steps": str(LONG)}
    response = running.client.post(
        "/v1/images/edits", data=data, files={"image": png(PHOTO)}, headers={"x-deadline-seconds": "0.05"}
    )
    assert response.status_code == 400
    assert "deadline" in error_of(response)["message"]


def test_original_clients_are_served(running: RunningServer) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(PHOTO)).decode()}"
    body = {"prompt": PROMPT, "image_url": url, "width": 256, "height": 256, "steps": 1, "output_format": "JPG"}
    answer = running.client.post("/inference", json=body | {"num_images": 2, "seed": 3, "true_cfg_scale": 1.0}).json()
    assert answer["seed"] == 3
    assert answer["inference_time"] > 0
    kinds = {image.partition(",")[0] for image in answer["images"]}
    assert kinds == {"data:image/jpeg;base64"}
    assert [opened(image.partition(",")[2]).size for image in answer["images"]] == [(256, 256)] * 2


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"prompt2": "another"}, "prompt2"),
        ({"negative_prompt2": "another"}, "negative_prompt2"),
        ({"steps": 51}, "steps"),
        ({"width": 255}, "width"),
        ({"num_images": 5}, "num_images"),
        ({"image_url": "file:///etc/passwd"}, "image_url"),
        ({"image_url": "http://169.254.169.254/"}, "image_url"),
        ({"scheduler": "euler"}, "scheduler"),
        ({"steps": "four"}, "steps"),
    ],
)
def test_field_of_the_original_is_refused_by_name(running: RunningServer, values: dict[str, Any], param: str) -> None:
    response = running.client.post("/inference", json={"prompt": PROMPT} | values)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_bodies_that_cannot_be_read_are_refused(running: RunningServer) -> None:
    post = running.client.post
    huge = json.dumps({"prompt": "a" * 3_000_000})
    kind = {"content-type": "application/json"}
    form = {"content-type": "multipart/form-data; boundary=b"}
    cases = [
        (post("/v1/images/edits", json={"prompt": PROMPT}), 415),
        (post("/v1/images/edits", content=b"nothing", headers=form), 400),
        (post("/v1/images/edits", content=b"nothing", headers={"content-type": "multipart/form-data"}), 400),
        (post("/v1/images/edits", data={"prompt": PROMPT}, files={"picture": png(PHOTO)}), 400),
        (post("/v1/images/generations", content=huge, headers=kind), 413),
        (post("/v1/images/generations", content=b"{", headers=kind), 400),
        (post("/v1/images/generations", content=b"[" * 100_000, headers=kind), 400),
        (post("/v1/images/generations", content=b'{"prompt": "x", "guidance": NaN}', headers=kind), 400),
        (post("/v1/images/generations", json=[PROMPT]), 400),
        (post("/v1/images/generations", data={"prompt": PROMPT}), 415),
        (running.edit(bomb()), 400),
        (running.client.get("/v1/images/edits"), 405),
        (running.client.get("/nothing"), 404),
        (running.client.get("/v1/models/another"), 404),
    ]
    for response, status in cases:
        assert response.status_code == status, response.text
        error_of(response)


def test_upload_that_is_too_slow_is_ended(running: RunningServer) -> None:
    with connect(running) as connection:
        connection.sendall(_head("multipart/form-data; boundary=b", 1000) + b"--b\r\n")
        assert b" 408 " in connection.recv(4096).partition(b"\r\n")[0]


def test_announced_size_is_refused_before_the_body(running: RunningServer) -> None:
    with connect(running) as connection:
        connection.sendall(_head("multipart/form-data; boundary=b", 2**40))
        assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]


def test_probes_and_metrics_tell_the_state(running: RunningServer) -> None:
    assert running.client.get("/livez").json() == {"status": "alive"}
    assert running.client.get("/readyz").status_code == 200
    health = running.health()
    assert (health["status"], health["model_loaded"], health["checkpoint"]) == ("healthy", True, "tiny")
    images = running.metric("kontext_images_total", preset="baseline")
    running.edit()
    assert running.metric("kontext_images_total", preset="baseline") == images + 1
    assert running.metric("kontext_ready") == 1
    assert running.metric("kontext_busy_seconds_total", worker="cpu") > 0
    assert running.metric("kontext_http_requests_total", route="/v1/images/edits", code="200") >= 1


def test_models_say_what_requests_may_ask_for(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    details = model.kontext  # type: ignore[attr-defined]
    assert [preset["name"] for preset in details["presets"]] == ["baseline"]
    assert details["max_steps"] == LONG
    assert client.models.retrieve("tiny").id == "tiny"


def test_lora_is_exchanged_per_request(running: RunningServer) -> None:
    plain, inked, again = (running.edit(seed=1, **lora).json() for lora in ({}, {"lora": "ink"}, {}))
    assert [answer["kontext"]["lora"] for answer in (plain, inked, again)] == [None, "ink", None]
    assert inked["kontext"]["lora_swap_s"] > 0
    assert plain["kontext"]["lora_swap_s"] == 0
    assert plain["data"][0]["b64_json"] == again["data"][0]["b64_json"] != inked["data"][0]["b64_json"]
    unknown = running.edit(lora="pencil")
    assert (unknown.status_code, error_of(unknown)["param"]) == (400, "lora")


def test_request_has_an_identity_and_no_prompt_in_the_log(running: RunningServer) -> None:
    named = running.client.get("/livez", headers={"x-request-id": "my-request.1"})
    assert named.headers["x-request-id"] == "my-request.1"
    assert running.client.get("/livez", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    response = running.edit(prompt="the words of a stranger")
    assert response.json()["kontext"]["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-request-id"] in running.log()
    assert "the words of a stranger" not in running.log()
    assert "the words of a stranger" not in running.client.get("/metrics").text


def test_worker_that_is_killed_is_replaced(running: RunningServer) -> None:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(running.edit(steps=LONG)))
    thread.start()
    until(lambda: running.health()["running"] == 1)
    running.worker().send_signal(signal.SIGKILL)
    thread.join(60)
    assert answers[0].status_code == 500
    assert error_of(answers[0])["code"] == "worker_died"
    # Accepted while the next worker loads.
    assert running.edit(timeout=120).status_code == 200
    assert running.metric("kontext_worker_restarts_total", worker="cpu") >= 1


def test_sigterm_finishes_what_runs_and_refuses_what_waits(running: RunningServer) -> None:
    processes = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(running.edit, steps=8)
        until(lambda: running.health()["running"] == 1)
        others = [threads.submit(running.edit) for _ in range(2)]
        until(lambda: running.health()["waiting"] == 2)
        start = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - start < 60
        assert first.result().status_code == 200
        refused = [other.result() for other in others]
    assert [response.status_code for response in refused] == [503, 503]
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert [process for process in processes if process.is_running() and process.status() != "zombie"] == []
    assert "Traceback" not in running.log()
