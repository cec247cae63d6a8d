"""What the HTTP port serves, and the headers of every answer: a Starlette application; knows no socket."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from teacher_server.web.access import Access
from teacher_server.web.history import History
from teacher_server.web.snapshot import State

__all__ = ["HEADERS", "Pages", "build_app"]

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_OPEN = frozenset({"/healthz", "/readyz"})
_PAGE = "page.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NUMBER = 18  # digits


class Pages:
    """Answers each path. Used by one thread, that of the event loop.

    Args:
        history: the figures.
        registry: the metrics.
        state: whether the server starts, serves or drains.
    """

    def __init__(self, history: History, registry: CollectorRegistry, state: Callable[[], State]) -> None:
        self._history = history
        self._registry = registry
        self._state = state
        self._written: dict[int, bytes] = {}
        self._sample = 0

    async def status(self, request: Request) -> Response:
        """The figures as JSON, with the curves after the sample that `after` names."""
        asked = request.query_params.get("after", "0")
        after = int(asked) if asked.isascii() and asked.isdigit() and len(asked) <= _NUMBER else 0
        if not self._history.sample:
            return PlainTextResponse("the server has only just started; ask again", 503, {"retry-after": "1"})
        return Response(self._document(after), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text, or OpenMetrics where that is asked for."""
        names = request.query_params.getlist("name[]")
        registry = self._registry.restricted_registry(names) if names else self._registry
        body, content_type = _written(registry, ", ".join(request.headers.getlist("accept")))
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
        return Response(body, headers=headers)

    async def live(self, request: Request) -> Response:
        """This process answers."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """Whether new students are taken."""
        state = self._state()
        return PlainTextResponse(f"{state}\n", 200 if state == "serving" else 503)

    def _document(self, after: int) -> bytes:
        """Written once a sample, however many look; those who poll ask after one of the last few samples."""
        if self._sample != self._history.sample:
            self._written, self._sample = {}, self._history.sample
        kept_after = after if self._sample - self._history.kept < after <= self._sample else 0
        if kept_after not in self._written:
            self._written[kept_after] = self._history.status(kept_after).model_dump_json().encode()
        return self._written[kept_after]


def build_app(pages: Pages, access: Access) -> ASGIApp:
    """The application: the paths there are, and a guard before all of them."""
    routes = [
        Route("/status.json", pages.status),
        Route("/metrics", pages.metrics),
        Route("/healthz", pages.live),
        Route("/readyz", pages.ready),
        *_files(),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return _Guard(app, access)


def _written(registry: Collector, accept: str) -> tuple[bytes, str]:
    """The metrics in the form asked for, and its content type."""
    try:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
    except (TypeError, ValueError):  # how prometheus_client takes a version that is none
        encode, content_type = choose_encoder("")
        return encode(registry), content_type


def _files() -> list[Route]:
    """The page and the files it is made of, read once; the page is at `/`."""
    static = resources.files("teacher_server.web") / "static"
    found = {each.name: each.read_bytes() for each in static.iterdir()}
    return [
        Route("/" if name == _PAGE else f"/{name}", _file(content, _TYPES[PurePath(name).suffix]))
        for name, content in found.items()
    ]


def _file(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(content, headers={"content-type": media_type})

    return answer


class _Guard:
    """Sees to it that who asks may, and that every answer has the headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self._app
        if scope["path"] not in _OPEN:
            client = scope.get("client")
            denial = await self._access.denial(Headers(scope=scope), client[0] if client else "")
            if denial is not None:
                app = PlainTextResponse(f"{denial.sentence}\n", denial.status, dict(denial.headers))
        await app(scope, receive, send_with_headers)
