"""A bound on what is served at once: load beyond it is shed at the door, before latency grows for everybody.

gRPC's own bound counts long streams and health watches together with short calls; these are counted apart, and
the refusal says when to come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from twinmesh_core.errors import Reason, ResourceExhausted
from twinmesh_runtime.telemetry import counter, gauge

RETRY_AFTER_S: Final = 0.25


class Admission:
    """Counts calls in flight and refuses one too many.

    Args:
        token: the service's token, for metric names.
        max_calls: unary calls at once.
        max_streams: streams at once.
    """

    def __init__(self, *, token: str, max_calls: int, max_streams: int) -> None:
        self._limits = {False: max_calls, True: max_streams}
        self._now = {False: 0, True: 0}
        in_flight = gauge(token, "rpc_in_flight", "Calls being served, by kind.", ("kind",))
        in_flight.labels("unary").set_function(lambda: self._now[False])
        in_flight.labels("stream").set_function(lambda: self._now[True])
        self._shed = counter(token, "rpc_shed", "Calls refused because too many were in flight.", ("kind",))

    @contextmanager
    def admit(self, *, streaming: bool, exempt: bool = False) -> Iterator[None]:
        """Count one call for as long as the block runs.

        Raises:
            ResourceExhausted: as many are being served as may be.
        """
        if exempt:
            yield
            return
        if self._now[streaming] >= self._limits[streaming]:
            kind = "stream" if streaming else "unary"
            self._shed.labels(kind).inc()
            raise ResourceExhausted(
                f"The service is serving {self._limits[streaming]} {kind} calls, as many as it may; try again.",
                reason=Reason.OVERLOADED,
                retry_after_s=RETRY_AFTER_S,
            )
        self._now[streaming] += 1
        try:
            yield
        finally:
            self._now[streaming] -= 1
