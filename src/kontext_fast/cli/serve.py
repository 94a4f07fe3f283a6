"""`kontext serve`: an HTTP server with an API like OpenAI's, and a page to try it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kontext_fast.cli.command_class import Group
from kontext_fast.cli.output import say
from kontext_fast.optimizations import DEFAULT_PRESET
from kontext_fast.pipeline.load import KONTEXT_DEV, choices

if TYPE_CHECKING:
    from kontext_fast.server.settings import ServerSettings

GROUP = Group.SERVE


def command(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8000,
    checkpoint: Annotated[
        str | None, typer.Option(help=f"{choices()}. [default: {KONTEXT_DEV}, with a GPU]", show_default=False)
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help=f"Presets that requests may choose, the default first. [default: {DEFAULT_PRESET}]",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH[:STRENGTH]", help="A LoRA that requests may choose.", show_default=False),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="One worker on each. [default: every GPU, else the CPU]", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each worker.", show_default="torch's choice")
    ] = None,
    worker_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Host memory of each worker.", show_default="no limit")
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of a request that names none.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance of a request that names none.")] = 2.5,
    max_steps: Annotated[int, typer.Option(help="Steps that a request may ask for.")] = 100,
    max_images: Annotated[int, typer.Option(help="Images that a request may ask for.")] = 4,
    max_enlargement: Annotated[
        float, typer.Option(help="Side of the largest output, in sides of the checkpoint's native square.")
    ] = 2.0,
    batch: Annotated[int, typer.Option(help="Images that may run together; pays at 512x512 and below.")] = 1,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are told to come again.")] = 32,
    deadline: Annotated[float, typer.Option(metavar="S", help="Seconds that a request may take at most.")] = 300,
    stall: Annotated[
        float, typer.Option(metavar="S", help="A worker that reports nothing for so many seconds is replaced.")
    ] = 300,
    grace: Annotated[
        float, typer.Option(metavar="S", help="Seconds that running requests get to finish after SIGTERM.")
    ] = 60,
    max_upload: Annotated[float, typer.Option(metavar="MIB", help="Size of a request.")] = 50,
    upload_time: Annotated[float, typer.Option(metavar="S", help="Seconds that a request may take to arrive.")] = 60,
    max_input: Annotated[float, typer.Option(metavar="MEGAPIXELS", help="Size of an input image.")] = 32,
    url_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Host that images may be fetched from; *.HOST for all below it.", show_default="none"
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Requests must have one of these; better set as KONTEXT_API_KEY, since others see command lines.",
            show_default="none wanted",
            hide_input=True,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Site whose pages may use this server.", show_default="none"),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Further name of a server on loopback, behind a proxy.", show_default="none"),
    ] = None,
    verification: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder of a verify, whose verdicts are shown.", show_default="none"),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Serve by Ray Serve, with a replica on each GPU.")] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A cluster that the server is deployed to, and stays in. [default: a local one]",
            show_default=False,
        ),
    ] = None,
    min_replicas: Annotated[int, typer.Option("--min", metavar="N", help="Fewest replicas of --ray.")] = 1,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            "--max", metavar="N", help="Most replicas of --ray, by how many requests wait.", show_default="--min"
        ),
    ] = None,
) -> None:
    """Serve edits over HTTP, with a page to try them at /."""
    try:
        from kontext_fast.server.placement import default_checkpoint
        from kontext_fast.server.run import serve
        from kontext_fast.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        from kontext_fast.errors import Refused

        raise Refused(f"The server needs the package {error.name}; run `pip install kontext-fast[serve]`.") from error

    settings = ServerSettings(
        host=host,
        port=port,
        checkpoint=checkpoint or (KONTEXT_DEV if ray_address else default_checkpoint()),
        presets=_parts(preset) or (DEFAULT_PRESET,),
        loras=_parts(lora),
        devices=_parts(device),
        threads=threads,
        worker_memory_gib=worker_memory,
        steps=steps,
        guidance=guidance,
        max_steps=max_steps,
        max_images=max_images,
        max_enlargement=max_enlargement,
        batch=batch,
        queue=queue,
        deadline_s=deadline,
        stall_s=stall,
        grace_s=grace,
        max_upload_mib=max_upload,
        upload_s=upload_time,
        max_input_megapixels=max_input,
        url_hosts=_parts(url_host),
        api_keys=_parts(api_key),
        allow_origins=_parts(allow_origin),
        allow_hosts=_parts(allow_host),
        verifications=tuple(verification or ()),
    )
    if not settings.on_loopback and not settings.api_keys:
        say(f"Whoever reaches {host} may use this server; set KONTEXT_API_KEY, or listen on 127.0.0.1.")

    def announce(address: str) -> None:
        say(f"Serving {settings.checkpoint} on {address} once it is loaded; Ctrl-C ends.")

    if ray:
        _serve_on_ray(settings, min_replicas, max_replicas or min_replicas, ray_address, announce)
    else:
        serve(settings, announce)


def _serve_on_ray(
    settings: ServerSettings, fewest: int, most: int, address: str | None, announce: Callable[[str], None]
) -> None:
    import os
    import signal
    import threading

    from kontext_fast.errors import Refused
    from kontext_fast.server.placement import plan_workers

    # Else it writes remarks on its own workings to stderr, which is for ours.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        from kontext_fast.server.ray import Scale, serve_on_ray
    except ModuleNotFoundError as error:
        raise Refused(f"--ray needs the package {error.name}; run `pip install 'kontext-fast[ray]'`.") from error

    if address is None:
        plan_workers(settings)
    stopped = threading.Event()

    def until_stopped() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()

    serve_on_ray(settings, Scale(fewest, most), address, announce, until_stopped)


def _parts(values: list[str] | None) -> tuple[str, ...]:
    """The parts of an option that may be repeated, or hold several with commas."""
    return tuple(part.strip() for value in values or () for part in value.split(","))
