"""Metrics and logs of a service: Prometheus metrics named ``twinmesh_<token>_...`` and `log`.

A metric is asked for by name wherever it is used and exists once per process. Values of labels come from small, closed
sets (methods, codes, kinds), never from callers: tenants and twins are fields of logs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from typing import Final, TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from twinmesh_runtime.logs import log

__all__ = ["LATENCY_BUCKETS_S", "counter", "gauge", "histogram", "log", "serve_metrics"]

LATENCY_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds, in seconds, of the default histogram: half a millisecond to the default deadline."""

_MetricT = TypeVar("_MetricT", Counter, Gauge, Histogram)
_known: Final[dict[str, Counter | Gauge | Histogram]] = {}


def counter(token: str, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """Return the counter ``twinmesh_<token>_<name>_total``, the same one for every caller in this process."""
    return _once(f"twinmesh_{token}_{name}", Counter, lambda full: Counter(full, documentation, labels))


def gauge(token: str, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """Return the gauge ``twinmesh_<token>_<name>``, the same one for every caller in this process."""
    return _once(f"twinmesh_{token}_{name}", Gauge, lambda full: Gauge(full, documentation, labels))


def histogram(
    token: str,
    name: str,
    documentation: str,
    labels: Sequence[str] = (),
    *,
    buckets: Sequence[float] = LATENCY_BUCKETS_S,
) -> Histogram:
    """Return the histogram ``twinmesh_<token>_<name>``, the same one for every caller in this process."""
    return _once(
        f"twinmesh_{token}_{name}", Histogram, lambda full: Histogram(full, documentation, labels, buckets=buckets)
    )


def serve_metrics(*, host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Serve ``/metrics`` for Prometheus on its own thread; shut the returned server down, then join the thread.

    Raises:
        OSError: the port cannot be bound.
    """
    return start_http_server(port, addr=host)


def _once(full: str, kind: type[_MetricT], make: Callable[[str], _MetricT]) -> _MetricT:
    found = _known.get(full)
    if found is None:
        found = _known[full] = make(full)
    if not isinstance(found, kind):
        raise TypeError(f"{full} is a {type(found).__name__}, not a {kind.__name__}")
    return found
