"""`kontext serve --ray` on a cluster of this machine: the tests of the single server's clients, and what Ray adds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests import needs
from tests.server.loras import write_lora
from tests.server.processes import COMMAND, RunningServer, png, server, until
from tests.server.test_serving import (  # noqa: F401 - the same tests, with the server of this module
    LONG,
    client,
    error_of,
    test_aborting_one_of_five_leaves_four_answers,
    test_bodies_that_cannot_be_read_are_refused,
    test_client_that_leaves_frees_the_worker,
    test_deadline_that_cannot_be_kept_is_refused,
    test_field_of_the_original_is_refused_by_name,
    test_image_in_a_list_and_other_formats_are_served,
    test_lora_is_exchanged_per_request,
    test_models_say_what_requests_may_ask_for,
    test_openai_client_generates,
    test_openai_client_is_told_which_parameter_is_wrong,
    test_openai_client_makes_two_images,
    test_original_clients_are_served,
    test_served_image_is_the_library_s_alone_and_under_load,
    test_stream_has_partial_images_that_near_the_result,
    test_stream_tells_progress_where_it_is_asked_for,
    test_ten_edits_at_once_have_ten_answers,
)

pytestmark = [needs.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--ray", "--max-steps", str(LONG), "--max-upload", "2", "--queue", "12")
    folder = tmp_path_factory.mktemp("server")
    write_lora(folder / "ink.safetensors")
    with (
        server(folder, *options, "--lora", "ink=ink.safetensors:2", command=COMMAND) as started,
        ThreadPoolExecutor(5) as threads,
    ):
        # The first requests have Serve make what it keeps, which takes longer than a long edit of `tiny`.
        list(threads.map(lambda seed: started.edit(seed=seed), range(5)))
        yield started


def replicas(running: RunningServer, name: str) -> list[psutil.Process]:
    children = psutil.Process(running.process.pid).children(recursive=True)
    return [child for child in children if f"ServeReplica:kontext:{name}" in " ".join(child.cmdline())]


def test_more_requests_than_may_wait_are_told_to_come_again(running: RunningServer) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda seed: running.edit(seed=seed, steps=20, timeout=300), range(20)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 12
    for answer in answers:
        if answer.status_code == 429:
            assert error_of(answer)["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0


def test_replica_that_is_killed_costs_one_answer_at_most(running: RunningServer) -> None:
    with ThreadPoolExecutor(1) as threads:
        running_edit = threads.submit(running.edit, steps=LONG, timeout=300)
        until(lambda: running.health()["running"] == 1)
        (replica,) = replicas(running, "Editor")
        replica.send_signal(signal.SIGKILL)
        answer = running_edit.result()
    # It is sent once more where it had done nothing yet.
    assert answer.status_code in (200, 500)
    if answer.status_code == 500:
        assert error_of(answer)["code"] == "worker_died"
    # Accepted while the next replica loads.
    assert running.edit(timeout=120).status_code == 200


def test_sigterm_finishes_what_runs(running: RunningServer) -> None:
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(running.edit, steps=20, timeout=300)
        until(lambda: running.health()["running"] == 1)
        running.process.send_signal(signal.SIGTERM)
        assert first.result().status_code == 200
        assert running.process.wait(120) == 0


def test_rolling_change_of_presets_loses_no_request(tmp_path: Path) -> None:
    """On a cluster that the server is deployed to: baseline is followed by faithful, which becomes the default.

    The new replica takes longer to load than a replica may take to finish its edit.
    """
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ports.append(str(listener.getsockname()[1]))
    cluster, web = ports
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAY_AUTH_MODE": "disabled"}
    start = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard", "false"]
    head = subprocess.Popen(
        [sys.executable, *start, "--port", cluster, "--num-cpus", "3", "--temp-dir", f"/tmp/ray-{cluster}"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    command = [*COMMAND, "--ray", "--ray-address", f"127.0.0.1:{cluster}", "--port", web, "--steps", "1"]
    command += ["--threads", "1", "--device", "cpu", "--grace", "4", "--preset"]

    def deploy(presets: str) -> None:
        until(lambda: connects(int(cluster)))
        done = subprocess.run([*command, presets], env=environment, cwd=tmp_path, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()

    def edited() -> httpx.Response:
        files = {"image": ("x.png", png(), "image/png")}
        return httpx.post(
            f"http://127.0.0.1:{web}/v1/images/edits", data={"prompt": "make it red"}, files=files, timeout=200
        )

    answers: list[httpx.Response] = []
    end = threading.Event()

    def load() -> None:
        while not end.is_set():
            answers.append(edited())

    try:
        deploy("baseline")
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) >= 5)
        deploy("faithful,baseline")
        until(lambda: answers[-1].json()["kontext"]["preset"] == "faithful", 120)
        end.set()
        for thread in threads:
            thread.join()
        assert {answer.text[:200] for answer in answers if answer.status_code != 200} == set()
        presets = [answer.json()["kontext"]["preset"] for answer in answers]
        assert (presets[0], presets[-1]) == ("baseline", "faithful")
    finally:
        end.set()
        processes = psutil.Process(head.pid).children(recursive=True)
        for process in [*processes, psutil.Process(head.pid)]:
            process.kill()
        head.wait()


def connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
