"""Counters and histograms of the service, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What one service counts. Its labels come from fixed lists, never from a request.

    Args:
        inside: how many requests wait or are worked on.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, inside: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "detrlab_requests", "Answered requests", ("path", "status"), registry=self._registry
        )
        self._latency = Histogram(
            "detrlab_request_seconds",
            "From a request's arrival to its answer",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._work = Histogram(
            "detrlab_detector_seconds",
            "Time that the detector took, without reading the picture",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        line = Gauge("detrlab_requests_inside", "Waiting or worked on now", registry=self._registry)
        line.set_function(inside)
        ProcessCollector(registry=self._registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request. ``path`` is that of a route, or ``other``."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def worked(self, path: str, seconds: float) -> None:
        """Count one use of the detector."""
        self._work.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of it, for ``/metrics``."""
        return generate_latest(self._registry)
