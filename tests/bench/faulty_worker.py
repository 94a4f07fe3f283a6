"""The real worker with simulated work: each preset fails in its own way.

python faulty_worker.py PRESET=FAULT,... DESCRIPTOR
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from kontext_fast.bench import worker
from kontext_fast.bench.protocol import Ended, Job, Started, SuiteAborted
from kontext_fast.bench.worker import Send

real_work = worker._run

GARBAGE = b'\xff\xfe not json\n{"event": "ended", "status": "splendid"}\n\n[1, 2'


def work(job: Job, send: Send) -> None:
    faults = dict(pair.split("=") for pair in sys.argv[2].split(","))
    globals()[faults[job.preset]](job, send)


def fine(job: Job, send: Send) -> None:
    send(Ended(status="ok"))


def takes_its_time(job: Job, send: Send) -> None:
    time.sleep(0.2)
    send(Ended(status="ok"))


def reports_its_machine(job: Job, send: Send) -> None:
    send(Started(environment={"gpu": {"name": "card", "uuid_sha256": "this one"}}))
    send(Ended(status="ok"))


def reports_keep_images(job: Job, send: Send) -> None:
    send(Started(environment={"keep_images": job.keep_images}))
    send(Ended(status="ok"))


def fills_its_caches(job: Job, send: Send) -> None:
    folders = [Path(os.environ[name]) for name in ("KONTEXT_FAST_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")]
    send(Started(environment={"cached": [file.read_text() for folder in folders for file in folder.iterdir()]}))
    for folder in folders:
        (folder / "compiled").write_text(f"left by {job.preset}")
    send(Ended(status="ok"))


def refuses(job: Job, send: Send) -> None:
    send(Ended(status="refused", reason="There is no compiler; install one."))


def hangs(job: Job, send: Send) -> None:
    """Ignores SIGINT, and has a child that would outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "120"])
    send(Started(environment={"pids": [os.getpid(), child.pid]}))
    time.sleep(120)


def exits_slowly(job: Job, send: Send) -> None:
    atexit.register(time.sleep, 120)
    send(Ended(status="ok"))


def crashes_and_exits_slowly(job: Job, send: Send) -> None:
    atexit.register(time.sleep, 120)
    raise RuntimeError("first this")


def waits(job: Job, send: Send) -> None:
    send(Started(environment={"pids": [os.getpid()]}))
    time.sleep(120)


def leaves_a_child(job: Job, send: Send) -> None:
    """The child keeps the pipe for messages open after its parent has ended."""
    os.set_inheritable(int(sys.argv[1]), True)
    child = subprocess.Popen(["sleep", "120"], close_fds=False)
    send(Started(environment={"pids": [child.pid]}))
    send(Ended(status="ok"))


def is_killed(job: Job, send: Send) -> None:
    send(Started(environment={"cpu": "known before the end"}))
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(job: Job, send: Send) -> None:
    raise RuntimeError("no file /home/alice/secret/model.bin for hf_abcdefghijklmnopqrstuv")


def exhausts_memory(job: Job, send: Send) -> None:
    bytearray(2**56)


def edits_in_too_little_memory(job: Job, send: Send) -> None:
    """The real work, with room for the libraries but not for the weights and activations."""
    import torch
    from diffusers import FluxKontextPipeline
    from transformers import CLIPTextModel, T5EncoderModel

    assert FluxKontextPipeline
    assert CLIPTextModel
    assert T5EncoderModel
    # OpenMP ends the process where there is no room for a thread's stack, and reports nothing.
    torch.set_num_threads(1)
    room = psutil.Process().memory_info().vms + 32 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    real_work(job, send)


def writes_garbage(job: Job, send: Send) -> None:
    """Garbage on stdout and on the pipe, before and after the message."""
    sys.stdout.write("noise on stdout " * 1000)
    os.write(int(sys.argv[1]), GARBAGE + b"\n")
    send(Ended(status="ok"))
    os.write(int(sys.argv[1]), GARBAGE)


def only_writes_garbage(job: Job, send: Send) -> None:
    os.write(int(sys.argv[1]), GARBAGE)


def reports_environment(job: Job, send: Send) -> None:
    send(Started(environment=dict(os.environ)))
    send(Ended(status="ok"))


def cannot_load(job: Job, send: Send) -> None:
    send(SuiteAborted(fault="input", reason="There is no checkpoint 'nowhere'; use tiny."))


if __name__ == "__main__":
    sys.argv[1:] = [sys.argv[2], sys.argv[1]]
    worker._run = work
    worker.main()
