"""Twins, their types and their predicted facet, at the state-sync service.

A twin is asked for with every forecast and changes about never, so its answer is kept for some seconds; a version of a
twin type never changes and is kept until there are too many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar
from uuid import uuid4

import grpc.aio

from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.type.v1 import prediction_pb2
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core.time import Clock
from twinmesh_inference.adapters.dependency import dependency
from twinmesh_inference.domain.ports import Channel, LogPosition, Prediction, Twin

_TIMEOUT_S: Final = 5.0
_MAX_TWINS: Final = 20_000
_MAX_TYPES: Final = 2_000
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class StatesyncTwins:
    """Asks the state-sync service; see `TwinDirectory`.

    Args:
        channel: to the state-sync service.
        clock: its monotonic side ages what is kept.
        keep_s: how long a twin's answer is used; 0 asks every time.
    """

    def __init__(self, channel: grpc.aio.Channel, clock: Clock, *, keep_s: float) -> None:
        self._twins = statesync_pb2_grpc.TwinServiceStub(channel)
        self._clock = clock
        self._keep_s = keep_s
        self._kept_twins: _Kept[tuple[str, str], tuple[float, LogPosition, Twin]] = _Kept(_MAX_TWINS)
        self._kept_types: _Kept[tuple[str, str, int], dict[str, Channel]] = _Kept(_MAX_TYPES)

    async def twin(self, tenant: str, twin_id: str, *, min_offset: int, incarnation: str) -> Twin:
        """See `TwinDirectory.twin`."""
        now_s = self._clock.monotonic_s()
        kept = self._kept_twins.get((tenant, twin_id))
        if kept is not None and kept[0] > now_s and _reflects(kept[1], min_offset, incarnation):
            return kept[2]
        request = statesync_pb2.GetTwinRequest(twin_id=twin_id, min_offset=min_offset, incarnation=incarnation)
        with dependency("statesync"):
            answer = await call(self._twins.GetTwin, request, timeout_s=_TIMEOUT_S, metadata=tenant_metadata(tenant))
        type_id, type_version = answer.twin.twin_type_id, answer.twin.twin_type_version
        twin = Twin(
            twin_id=answer.twin.twin_id,
            time_zone=answer.twin.time_zone or "UTC",
            channels=await self._channels(tenant, type_id, type_version, answer.as_of.offset),
        )
        position = LogPosition(incarnation=answer.as_of.incarnation, offset=answer.as_of.offset)
        self._kept_twins.put((tenant, twin_id), (now_s + self._keep_s, position, twin))
        return twin

    async def _channels(self, tenant: str, type_id: str, version: int, min_offset: int) -> dict[str, Channel]:
        kept = self._kept_types.get((tenant, type_id, version))
        if kept is not None:
            return kept
        request = statesync_pb2.GetTwinTypeRequest(twin_type_id=type_id, version=version, min_offset=min_offset)
        with dependency("statesync"):
            answer = await call(
                self._twins.GetTwinType, request, timeout_s=_TIMEOUT_S, metadata=tenant_metadata(tenant)
            )
        channels = {
            one.name: Channel(
                name=one.name, unit=one.unit, upper_limit=one.upper_limit if one.HasField("upper_limit") else None
            )
            for one in answer.twin_type.channels
        }
        self._kept_types.put((tenant, type_id, version), channels)
        return channels


def _reflects(position: LogPosition, min_offset: int, incarnation: str) -> bool:
    return position.offset >= min_offset and incarnation in ("", position.incarnation)


class StatesyncPredictions:
    """Writes to the predicted facet; see `PredictionRecorder`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = statesync_pb2_grpc.ReplicaServiceStub(channel)

    async def record(self, tenant: str, twin_id: str, prediction: Prediction) -> bool:
        """Write it and say whether it is now the twin's prediction."""
        message = prediction_pb2.Prediction(
            channel=prediction.channel,
            model_id=prediction.model_id,
            model_version=prediction.model_version,
            input_offset=prediction.input_offset,
            step_us=prediction.step_us,
            quantile_levels=prediction.quantile_levels,
            values=prediction.values.ravel().tolist(),
            unit=prediction.unit,
        )
        message.at.FromMicroseconds(prediction.at_unix_us)
        message.valid_until.FromMicroseconds(prediction.valid_until_unix_us)
        request = statesync_pb2.RecordPredictionRequest(twin_id=twin_id, prediction=message, request_id=uuid4().hex)
        with dependency("statesync"):
            answer = await call(
                self._stub.RecordPrediction, request, timeout_s=_TIMEOUT_S, metadata=tenant_metadata(tenant)
            )
        return answer.applied


class _Kept(Generic[_K, _V]):
    """The most recently used answers, a bounded number of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[_K, _V] = OrderedDict()

    def get(self, key: _K) -> _V | None:
        """Return the answer kept for `key`, or None."""
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        return None

    def put(self, key: _K, answer: _V) -> None:
        """Keep an answer, and drop the one used longest ago if there are too many."""
        self._answers[key] = answer
        self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)
