"""The web service: ``create_app`` joins the detector, the line, metrics and the page."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from detrlab import __version__
from detrlab.report.parts import marks, stylesheet, text_of
from detrlab.serve import answers
from detrlab.serve.line import Limits, Line, Refusal
from detrlab.serve.metrics import Metrics
from detrlab.serve.uploads import FORM, check_type, open_picture, read_body

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.api import Detector
    from detrlab.export.base import OtherDetector

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names under which a service that is not opened to a network answers."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_Share = Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "no picture, a damaged one, or an invalid parameter"},
    408: {"description": "the upload took too long"},
    413: {"description": "too many bytes or pixels"},
    415: {"description": "not a picture of a known format"},
    429: {"description": "too many requests are waiting"},
    503: {"description": "the answer took too long"},
}


def create_app(
    detector: Detector | OtherDetector,
    name: str,
    limits: Limits | None = None,
    *,
    opened: bool = False,
) -> FastAPI:
    """The service of one detector, for any ASGI server. It keeps and writes nothing.

    Args:
        detector: ready for inference.
        name: what the service calls it.
        limits: on uploads, time and waiting requests.
        opened: answer under any host name. Otherwise only as ``LOOPBACK``, so that no web page
            can reach the service by a name of its own that leads here (DNS rebinding).
    """
    limits = limits or Limits()
    line = Line(limits)
    metrics = Metrics(lambda: line.inside)
    facts = answers.about(detector, name) | {
        "version": __version__,
        "max_bytes": limits.max_bytes,
        "max_pixels": limits.max_pixels,
    }

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        line.close()

    # Their pages of documentation would load scripts from elsewhere.
    app = FastAPI(
        title=f"detrlab: {name}",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.middleware("http")(partial(_guarded, metrics=metrics, opened=opened))
    for kind, answer in (
        (Refusal, _refused),
        (RequestValidationError, _invalid),
        (HTTPException, _http_error),
    ):
        app.add_exception_handler(kind, answer)
    _add_page(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the service runs."""
        return {"status": "ok"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Name, classes and suggested threshold of the detector, and what uploads may be."""
        return facts

    @app.get("/metrics")
    async def measured() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    async def answered(
        request: Request, answer: Callable[[Any, Tensor], dict[str, Any]]
    ) -> dict[str, Any]:
        def work(body: bytes) -> dict[str, Any]:
            pixels = open_picture(body, limits)
            started = time.perf_counter()
            result = answer(detector, pixels)
            seconds = time.perf_counter() - started
            metrics.worked(request.url.path, seconds)
            return {"model": name, **result, "seconds": round(seconds, 4)}

        check_type(request)
        return await line.run(partial(read_body, request, limits), work)

    @app.post("/predict", openapi_extra=_UPLOAD, responses=_REFUSALS)
    async def predict(request: Request, threshold: _Share = None) -> dict[str, Any]:
        """Find the objects of a picture that score at least ``threshold``."""
        least = facts["threshold"] if threshold is None else threshold
        return await answered(request, partial(answers.detections, threshold=least))

    if facts["explains"]:

        @app.post("/explain", openapi_extra=_UPLOAD, responses=_REFUSALS)
        async def explain(
            request: Request, detection: Annotated[int, Query(ge=0)] = 0
        ) -> dict[str, Any]:
            """Where the query of a detection looked, layer by layer; 0 is the best detection."""
            return await answered(request, partial(answers.explanation, number=detection))

    return app


def _add_page(app: FastAPI) -> None:
    """The page and its two files, read once."""
    page = text_of("page.html", "serve")
    style = stylesheet() + text_of("page.css", "serve")
    script = marks() + text_of("page.js", "serve")
    for path, kind, text in (
        ("/", "text/html", page),
        ("/page.css", "text/css", style),
        ("/page.js", "text/javascript", script),
    ):
        app.add_api_route(path, _sender(text, kind), include_in_schema=False)


def _sender(text: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(text, media_type=kind)

    return send


async def _guarded(
    request: Request,
    go_on: Callable[[Request], Awaitable[Response]],
    metrics: Metrics,
    opened: bool,
) -> Response:
    """Refuse what other web pages send, count and time the answer, add the headers."""
    started = time.perf_counter()
    host, site = request.url.hostname, request.headers.get("sec-fetch-site", "none")
    if not opened and host not in LOOPBACK:
        answer: Response = _error(400, f"this service answers to {' and '.join(LOOPBACK[:2])} only")
    elif request.method == "POST" and site not in ("same-origin", "none"):
        answer = _error(403, "another web page may not send requests to this service")
    else:
        try:
            answer = await go_on(request)
        except Exception:
            logging.getLogger(__name__).exception("%s failed", request.url.path)
            answer = _error(500, "the service failed on this request; its log says why")
    answer.headers.update(HEADERS)
    route = request.scope.get("route")
    path = getattr(route, "path", "other")
    metrics.answered(path, answer.status_code, time.perf_counter() - started)
    return answer


def _error(status: int, sentence: str) -> JSONResponse:
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(_: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    return _error(refusal.status, str(refusal))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = str(first["msg"]).replace("Input should", "should")
    return _error(400, f"{first['loc'][-1]} {message}, not {str(first['input'])[:40]!r}")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:80]}"
    sentences = {404: f"there is no {where}", 405: f"{where} is not allowed"}
    return _error(error.status_code, sentences.get(error.status_code, str(error.detail)))
