"""Reads the past of twins from storage, as of one log position, and their time zones from state-sync."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import position_pb2
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core.errors import FailedPrecondition, NotFound, Reason, ResourceExhausted
from twinmesh_core.ids import quoted
from twinmesh_core.time import floor_to
from twinmesh_training.domain.dataset import History
from twinmesh_training.domain.ports import ReadHistory
from twinmesh_training.domain.values import TrainingSpec

_TIMEOUT_S: Final = 60.0
_CALL_CELLS: Final = 1_500_000
"""Cells per ReadWindow: 12 MB of float64, below the message bound of 16 MiB."""
_CALL_STEPS: Final = 1_000_000
_MAX_CELLS: Final = 60_000_000
"""Cells of a whole run: about half a gigabyte, and as much again while it is cut into windows."""

Metadata = tuple[tuple[str, str], ...]


class StorageHistory:
    """See `twinmesh_training.domain.ports.HistoryReader`.

    Windows come from storage's ReadWindow, which serves inference as well: both see the same numbers.
    """

    def __init__(
        self,
        storage: storage_pb2_grpc.StorageServiceAsyncStub,
        twins: statesync_pb2_grpc.TwinServiceAsyncStub,
    ) -> None:
        self._storage = storage
        self._twins = twins

    async def read(self, tenant: str, spec: TrainingSpec) -> ReadHistory:
        """Return matrices of all channels on one grid."""
        metadata = tenant_metadata(tenant)
        head = await call(self._storage.GetHead, storage_pb2.GetHeadRequest(), timeout_s=_TIMEOUT_S, metadata=metadata)
        zones = [await self._time_zone(twin_id, metadata) for twin_id in spec.twin_ids]
        spans = [await self._span(twin_id, spec, head.position, metadata) for twin_id in spec.twin_ids]
        start, steps = _grid(spec, spans)
        channels = spec.channels
        cells = len(spec.twin_ids) * steps * len(channels)
        if cells > _MAX_CELLS:
            raise ResourceExhausted(
                f"The run would read {cells:,} values, and at most {_MAX_CELLS:,} fit. Set start_time, take a longer"
                " step, or learn from fewer twins or inputs.",
                reason=Reason.OVERLOADED,
                metadata={"limit": str(_MAX_CELLS)},
            )
        values, units = await self._windows(spec, start, steps, head.position, metadata)
        return ReadHistory(
            histories=tuple(
                History(twin_id=twin_id, time_zone=zone, values=values[index], start_us=start)
                for index, (twin_id, zone) in enumerate(zip(spec.twin_ids, zones, strict=True))
            ),
            units=units,
            as_of_offset=head.position.offset,
            incarnation=head.position.incarnation,
        )

    async def _time_zone(self, twin_id: str, metadata: Metadata) -> str:
        request = statesync_pb2.GetTwinRequest(twin_id=twin_id)
        found = await call(self._twins.GetTwin, request, timeout_s=_TIMEOUT_S, metadata=metadata)
        return found.twin.time_zone or "UTC"

    async def _span(
        self, twin_id: str, spec: TrainingSpec, position: position_pb2.LogPosition, metadata: Metadata
    ) -> _Span:
        """First and last event time of the target; every channel must have been heard from."""
        # Waits until readable history has caught up with the head; the catalogue below has no wait of its own.
        wait = storage_pb2.ReadLatestRequest(
            twin_ids=[twin_id], min_offset=position.offset, incarnation=position.incarnation
        )
        await call(self._storage.ReadLatest, wait, timeout_s=_TIMEOUT_S, metadata=metadata)
        found: dict[str, storage_pb2.SeriesInfo] = {}
        token = ""
        while True:
            request = storage_pb2.ListSeriesRequest(twin_id=twin_id, page_size=1_000, page_token=token)
            page = await call(self._storage.ListSeries, request, timeout_s=_TIMEOUT_S, metadata=metadata)
            found |= {info.key.channel: info for info in page.series if info.HasField("last_time")}
            token = page.next_page_token
            if not token:
                break
        for channel in spec.channels:
            if channel not in found:
                heard = ", ".join(sorted(found)) or "none"
                raise NotFound(
                    f"The twin {quoted(twin_id)} has no history of the channel {quoted(channel)}; it has: {heard}.",
                    reason=Reason.CHANNEL_NOT_FOUND,
                    metadata={"twin_id": twin_id, "channel": channel, "channels": heard},
                )
        target = found[spec.target]
        return _Span(first_us=_time_us(target.first_time), last_us=_time_us(target.last_time))

    async def _windows(
        self,
        spec: TrainingSpec,
        start_us: int,
        steps: int,
        position: position_pb2.LogPosition,
        metadata: Metadata,
    ) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
        channels, twins = spec.channels, spec.twin_ids
        values = np.empty((len(twins), steps, len(channels)))
        units = [""] * len(channels)
        steps_per_call = min(steps, _CALL_STEPS, max(1, _CALL_CELLS // len(channels)))
        twins_per_call = max(1, _CALL_CELLS // (steps_per_call * len(channels)))
        for first_twin in range(0, len(twins), twins_per_call):
            some = slice(first_twin, first_twin + twins_per_call)
            for first in range(0, steps, steps_per_call):
                last = min(first + steps_per_call, steps)
                request = storage_pb2.ReadWindowRequest(
                    twin_ids=twins[some],
                    channels=channels,
                    at=_timestamp(start_us + last * spec.step_us),
                    step=_duration(spec.step_us),
                    steps=last - first,
                    gap_policy=storage_pb2.GAP_POLICY_NONE,
                    min_offset=position.offset,
                    as_of_offset=position.offset,
                    incarnation=position.incarnation,
                )
                answer = await call(self._storage.ReadWindow, request, timeout_s=_TIMEOUT_S, metadata=metadata)
                part = np.frombuffer(answer.values, "<f8").reshape(len(twins[some]), last - first, len(channels))
                values[some, first:last] = part
                for index, unit in enumerate(answer.units):
                    units[index] = units[index] or unit
        return values, tuple(units)


@dataclass(frozen=True, slots=True)
class _Span:
    first_us: int
    last_us: int


def _grid(spec: TrainingSpec, spans: list[_Span]) -> tuple[int, int]:
    """Start of the first step and number of steps that cover every twin's target within what the spec allows."""
    first = min(span.first_us for span in spans)
    if spec.start_time_us is not None:
        # Rounded up: no step may hold a value from before the start.
        first = max(floor_to(first, spec.step_us), -floor_to(-spec.start_time_us, spec.step_us))
    start = floor_to(first, spec.step_us)
    end = floor_to(max(span.last_us for span in spans), spec.step_us) + spec.step_us
    if spec.end_time_us is not None:
        end = min(end, floor_to(spec.end_time_us, spec.step_us))
    if end <= start:
        raise FailedPrecondition(
            "The twins have no history between start_time and end_time; widen them.",
            reason=Reason.NOT_ENOUGH_HISTORY,
            metadata={"available": "0"},
        )
    return start, (end - start) // spec.step_us


def _time_us(message: Timestamp) -> int:
    return message.seconds * 1_000_000 + message.nanos // 1_000


def _timestamp(time_unix_us: int) -> Timestamp:
    seconds, rest = divmod(time_unix_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def _duration(duration_us: int) -> Duration:
    seconds, rest = divmod(duration_us, 1_000_000)
    return Duration(seconds=seconds, nanos=rest * 1_000)
