"""Pages for people: the playground at `/`, and a description of the API at `/docs`, without a request to elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, FastAPI, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

_MEDIA_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "playground.css": "text/css; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def pages_router(app: FastAPI) -> APIRouter:
    """The routes of the pages; `app` is described at `/docs`."""
    router = APIRouter(include_in_schema=False)
    folder = files(__package__) / "playground"
    contents = {name: (folder / name).read_bytes() for name in _MEDIA_TYPES}
    templates = Environment(
        loader=PackageLoader(__package__, "playground"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    def answer(name: str) -> Response:
        return Response(contents[name], headers=_HEADERS | {"content-type": _MEDIA_TYPES[name]})

    @router.get("/")
    async def playground() -> Response:
        return answer("index.html")

    @router.get("/playground/{name}")
    async def part(name: str) -> Response:
        if name not in contents:
            return Response(status_code=404)
        return answer(name)

    @router.get("/docs")
    async def docs() -> Response:
        page = templates.get_template("docs.html.j2").render(api=app.openapi())
        return Response(page, headers=_HEADERS | {"content-type": _MEDIA_TYPES["index.html"]})

    return router
