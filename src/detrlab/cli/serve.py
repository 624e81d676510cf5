"""``detrlab serve``: a detector as a web service."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.export.base import OtherDetector


@dataclass(frozen=True)
class Options:
    """Serve a detector: a page for people, JSON for programs (docs/serving.md)."""

    model: Annotated[str, tyro.conf.Positional] = "deimv2-femto"
    """A checkpoint, an exported file, or a detector with published weights. The default comes with
    detrlab and finds the 80 classes of COCO."""
    host: str = "127.0.0.1"
    """Address to listen at. The default can be reached from this machine only; 0.0.0.0 opens the
    service to the network."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    imgsz: int | None = None
    """Another image size than the checkpoint was trained with: a larger one for small objects."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    max_megabytes: float = 20.0
    """Larger uploads are refused."""
    max_megapixels: float = 50.0
    """Larger pictures are refused before they are decoded."""
    timeout: float = 30.0
    """Seconds from the arrival of a request to its answer."""
    waiting: int = 8
    """Requests that may wait while one is worked on; one more is refused."""


def run(options: Options) -> int:
    """Serve until interrupted; returns the exit code."""
    from detrlab.cli.common import open_predictor, say

    try:
        import uvicorn

        from detrlab.serve.app import LOOPBACK, create_app
        from detrlab.serve.line import Limits
    except ImportError as error:
        raise UserError(
            f'detrlab serve needs the package {error.name}: pip install "detrlab[serve]"'
        ) from None
    _check(options)
    limits = Limits(
        max_bytes=int(options.max_megabytes * 1e6),
        max_pixels=int(options.max_megapixels * 1e6),
        seconds=options.timeout,
        waiting=options.waiting,
    )
    detector = open_predictor(options.model, options.device, options.imgsz)
    _warm_up(detector)
    opened = options.host not in LOOPBACK
    app = create_app(detector, Path(options.model).name, limits, opened=opened)
    listening = _listen(options.host, options.port)
    port = listening.getsockname()[1]
    shown = f"[{options.host}]" if ":" in options.host else options.host
    if opened:
        say("warning: everybody who reaches this address can use the service; it asks for no name")
    say(f"{options.model} at http://{shown}:{port}  (Ctrl-C ends it)")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=options.waiting + 100,
        timeout_graceful_shutdown=5,
    )
    with listening, suppress(KeyboardInterrupt):  # the usual end
        uvicorn.Server(config).run(sockets=[listening])
    say("ended")
    return 0


def _check(options: Options) -> None:
    for name in ("max_megabytes", "max_megapixels", "timeout"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: it should be above 0")
    if options.waiting < 0:
        raise UserError(f"--waiting {options.waiting}: it should be 0 or more")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: it should be from 0 to 65535")


def _warm_up(detector: Detector | OtherDetector) -> None:
    """The first forward pass may compile kernels; no request should wait for that."""
    import numpy as np

    detector.predict(np.zeros((64, 64, 3), np.uint8), keep_image=False)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host} port {port} ({error.strerror}): "
            "choose another --port, or an address of this machine as --host"
        ) from None
