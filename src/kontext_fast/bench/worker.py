"""The child of a benchmark: loads one checkpoint, applies one plan, measures its cells and reports to a pipe.

    python -m kontext_fast.bench.worker DESCRIPTOR      with a Job as the first line of stdin

An unexpected exception ends it with a traceback on stderr, which the parent records.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kontext_fast.bench.protocol import (
    Applied,
    Ended,
    Job,
    Loaded,
    Measured,
    Message,
    Planned,
    Progress,
    Started,
    SuiteAborted,
)
from kontext_fast.errors import Cancelled, InvalidInput, OutOfMemory, Refused

if TYPE_CHECKING:
    from kontext_fast.optimizations.presets import Plan

Send = Callable[[Message], None]


def main() -> NoReturn:
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    # The parent sends this signal to a worker that hangs, before it ends it.
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        if "RANK" in os.environ:
            _exit(_as_one_of_several(job))
        _report(job, int(sys.argv[1]))
    except BaseException:  # noqa: BLE001 - whatever it is, Python would print it and exit, but slowly
        traceback.print_exc()
        _exit(1)
    _exit(0)


def _report(job: Job, descriptor: int) -> None:
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "wb", buffering=0) as channel:

        def send(message: Message) -> None:
            channel.write(message.model_dump_json().encode() + b"\n")

        try:
            run(job, send)
        except (KeyboardInterrupt, Cancelled):
            send(Ended(status="interrupted", reason="The run was interrupted."))


def _as_one_of_several(job: Job) -> int:
    """Do what the first process does, which alone reports; the exit code tells it whether all went well."""
    ends: list[Message] = []
    run(job, lambda message: None if isinstance(message, Progress) else ends.append(message))
    if isinstance(last := ends[-1], Ended) and last.status == "ok":
        return 0
    sys.stderr.write(f"{getattr(last, 'reason', None)}\n")
    return 1


def _start_others(job: Job, gpus: int) -> None:
    """Start the other processes of a plan for several GPUs, in the group of this one, which ends where one fails."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    of_all = {"WORLD_SIZE": str(gpus), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**of_all, "RANK": "0"}
    for rank in range(1, gpus):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kontext_fast.bench.worker", "0"],
            stdin=subprocess.PIPE,
            env={**os.environ, "RANK": str(rank)},
        )
        assert process.stdin is not None
        own = {"keep_images": False, "device": job.device if job.device == "cpu" else f"cuda:{rank}"}
        process.stdin.write(job.model_copy(update=own).model_dump_json().encode() + b"\n")
        process.stdin.flush()  # and left open, until this process ends
        threading.Thread(target=_exit_with, args=(process,), daemon=True).start()


def _exit_with(other: subprocess.Popen[bytes]) -> None:
    """End this process some seconds after `other` failed, unless it says itself what is wrong before."""
    if other.wait():
        time.sleep(_GRACE_S)
        sys.stderr.write("Another process of this run failed; its reason is above.\n")
        _exit(1)


_GRACE_S = 3.0


def _exit(code: int) -> NoReturn:
    """End the process at once: shutting down the interpreter takes seconds with a model loaded, and torch's compilers
    can hang then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_with_parent() -> None:
    """End the process group when stdin closes: the parent, which keeps it open, has died and the GPU should be free."""
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run(job: Job, send: Send) -> None:
    """Do `job` and report to `send`; the last message is Ended or SuiteAborted."""
    try:
        _run(job, send)
    except OutOfMemory as error:
        send(Ended(status="oom", reason=str(error)))
    except MemoryError:
        send(Ended(status="oom", reason="The host memory ran out; close other programs."))
    except InvalidInput as error:
        send(SuiteAborted(fault="input", reason=str(error)))


def _run(job: Job, send: Send) -> None:
    from kontext_fast.bench.environment import environment_facts
    from kontext_fast.bench.measure import Bench
    from kontext_fast.bench.peers.techniques.fewer_steps import cell_for
    from kontext_fast.datasets import read_dataset
    from kontext_fast.optimizations.acceleration import apply_plan
    from kontext_fast.pipeline.device import choose_device, memory_errors
    from kontext_fast.pipeline.lora import load_with_loras
    from kontext_fast.records.store import ResultStore

    try:
        device = choose_device(job.device)
        send(Started(environment=environment_facts(str(device))))
        plan = _plan(job, device, send)
        if plan is None:
            return
        if (gpus := _gpus_of(plan)) > 1 and "RANK" not in os.environ:
            _start_others(job, gpus)
        send(Progress(phase="loading"))
        _import_libraries()
        start = time.perf_counter()
        source = load_with_loras(job.checkpoint, job.loras, device=device, in_host_memory=plan.in_host_memory)
        # Never left: the process ends with its pipeline.
        loaded = source.__enter__()
        _synchronize(device)
        send(Loaded(checkpoint=loaded.facts, load_s=time.perf_counter() - start))
    except OutOfMemory:
        raise
    except Refused as error:
        send(SuiteAborted(fault="machine", reason=str(error)))
        return

    try:
        send(Progress(phase="applying"))
        start = time.perf_counter()
        with memory_errors(f"applying {job.preset}"), _invalid_input_as_refusal():
            apply_plan(plan, loaded.pipe, device)
        _synchronize(device)
        send(Applied(apply_s=time.perf_counter() - start))
        store = ResultStore(Path(job.folder)) if job.keep_images else None
        dataset = None if job.dataset is None else read_dataset(Path(job.dataset))
        bench = Bench(loaded.pipe, job.suite, store=store, dataset=dataset)
        cells = [cell_for(plan, cell) for cell in job.cells]
        with _invalid_input_as_refusal():
            measured = bench.measure_all(cells, on_progress=send)
            for requested, (measurement, items) in zip(job.cells, measured, strict=True):
                send(Measured(measurement=measurement.model_copy(update={"cell": requested}), items=items))
    except OutOfMemory:
        raise
    except Refused as error:
        send(Ended(status="refused", reason=str(error)))
        return
    send(Ended(status="ok"))


def _plan(job: Job, device: Any, send: Send) -> Plan | None:
    """The resolved plan, or None if this machine refuses it; either is reported to the parent."""
    from kontext_fast.bench.peers import find_preset
    from kontext_fast.optimizations.presets import resolve
    from kontext_fast.pipeline.device import Machine
    from kontext_fast.pipeline.load import kind_of

    random_weights = kind_of(job.checkpoint).random_weights
    try:
        plan = resolve(find_preset(job.preset), Machine.detect(device), architecture_only=random_weights)
        _require_gpus(_gpus_of(plan), device)
    except Refused as error:
        send(Ended(status="refused", reason=str(error)))
        return None
    send(Planned(plan=plan.applied, labels=plan.labels))
    return plan


def _gpus_of(plan: Plan) -> int:
    """How many GPUs, of a process each, run every request together."""
    return max((getattr(optimization, "gpus", 1) for optimization in plan.optimizations), default=1)


def _require_gpus(gpus: int, device: Any) -> None:
    """Raise Refused where there are fewer."""
    import torch

    if device.type == "cuda" and torch.cuda.device_count() < gpus:
        raise Refused(f"The preset needs {gpus} GPUs and torch sees {torch.cuda.device_count()} here.")


@contextmanager
def _invalid_input_as_refusal() -> Iterator[None]:
    """A preset that does not fit checkpoint or requests is refused, so that the suite continues with the others."""
    try:
        yield
    except InvalidInput as error:
        raise Refused(str(error)) from error


def _import_libraries() -> None:
    """Import the libraries, so that the seconds this takes do not count as loading weights."""
    from diffusers import FluxKontextPipeline  # noqa: F401
    from transformers import CLIPTextModel, T5EncoderModel  # noqa: F401


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
