"""ReplicaService: the replica as of now, conditional targets, predictions, and the watch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from math import isfinite
from typing import Any, Final

import grpc
import grpc.aio

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import prediction_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_name, require_resource_id, require_twin_id
from twinmesh_core.registry_fold import Outcome
from twinmesh_core.time import MAX_SPAN_US, Clock
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.registry_mapping import duration_from_message
from twinmesh_statesync.domain.conditions import MAX_CONDITIONS
from twinmesh_statesync.domain.entries import AcknowledgeDesired, RecordPrediction, SetDesired
from twinmesh_statesync.domain.mask import read_mask
from twinmesh_statesync.domain.predicted import present_of
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.domain.verification import Verifier
from twinmesh_statesync.domain.writer import Writer, request_id_or_new
from twinmesh_statesync.rpc.mapping.conditions import conditions_from_messages
from twinmesh_statesync.rpc.mapping.control import desired_items
from twinmesh_statesync.rpc.mapping.replicas import delta_to_message, desired_to_message, replica_to_message
from twinmesh_statesync.rpc.mapping.values import (
    command_to_message,
    position_to_message,
    prediction_from_message,
    values_from_messages,
)
from twinmesh_statesync.rpc.mutation import content_of
from twinmesh_statesync.rpc.past import PastReads
from twinmesh_statesync.rpc.reading import Reading
from twinmesh_statesync.rpc.units import UnitConversions
from twinmesh_statesync.rpc.verification import verify
from twinmesh_statesync.rpc.watch import Watches

SERVICE: Final = "twinmesh.statesync.v1.ReplicaService"
MAX_TARGETS: Final = 1_000
MAX_PREDICTED: Final = 100_000
MAX_REASON_BYTES: Final = 1_024


class ReplicaServicer:
    """Serves replicas; `handler` registers it, since a watch answers bytes that are encoded already.

    Args:
        reading: read access to the fold.
        writer: has mutations decided.
        watches: the watches of this process.
        past: read access to what was.
        clock: turns a deadline's duration into a time.
        verifier: proves replicas.
        units: converts what is sent in other units than a channel's own.
    """

    def __init__(
        self,
        reading: Reading,
        writer: Writer,
        watches: Watches,
        past: PastReads,
        clock: Clock,
        verifier: Verifier,
        units: UnitConversions,
    ) -> None:
        self._reading = reading
        self._past = past
        self._writer = writer
        self._watches = watches
        self._clock = clock
        self._verifier = verifier
        self._units = units

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handlers of the service."""
        unary = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetReplica": unary(
                    self.get_replica,
                    request_deserializer=statesync_pb2.GetReplicaRequest.FromString,
                    response_serializer=statesync_pb2.GetReplicaResponse.SerializeToString,
                ),
                "SetDesired": unary(
                    self.set_desired,
                    request_deserializer=statesync_pb2.SetDesiredRequest.FromString,
                    response_serializer=statesync_pb2.SetDesiredResponse.SerializeToString,
                ),
                "AcknowledgeDesired": unary(
                    self.acknowledge_desired,
                    request_deserializer=statesync_pb2.AcknowledgeDesiredRequest.FromString,
                    response_serializer=statesync_pb2.AcknowledgeDesiredResponse.SerializeToString,
                ),
                "RecordPrediction": unary(
                    self.record_prediction,
                    request_deserializer=statesync_pb2.RecordPredictionRequest.FromString,
                    response_serializer=statesync_pb2.RecordPredictionResponse.SerializeToString,
                ),
                "VerifyReplicas": grpc.unary_stream_rpc_method_handler(
                    self.verify_replicas,
                    request_deserializer=statesync_pb2.VerifyReplicasRequest.FromString,
                    response_serializer=statesync_pb2.VerifyReplicasResponse.SerializeToString,
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.watch, request_deserializer=statesync_pb2.WatchRequest.FromString
                ),
            },
        )

    async def get_replica(
        self, request: statesync_pb2.GetReplicaRequest, context: Any
    ) -> statesync_pb2.GetReplicaResponse:
        """Return a twin's replica, as it is or as it was."""
        tenant = current_caller().tenant
        require_twin_id(request.twin_id)
        mask = read_mask(request.read_mask.paths, "read_mask")
        asked = await self._past.asked(request)
        if asked is not None:
            twin, replica = await self._past.replica(tenant, request.twin_id, asked)
            return statesync_pb2.GetReplicaResponse(
                replica=replica_to_message(mask.cut_twin(twin), mask.cut_replica(replica)),
                as_of=position_to_message(asked.as_of),
            )
        state = await self._reading.twin(tenant, request.twin_id)
        return statesync_pb2.GetReplicaResponse(
            replica=replica_to_message(
                mask.cut_twin(state.twin),
                mask.cut_replica(state.replica),
                present_unix_us=present_of(state, self._clock.now_unix_us()),
            ),
            as_of=self._reading.as_of(),
        )

    async def set_desired(
        self, request: statesync_pb2.SetDesiredRequest, context: Any
    ) -> statesync_pb2.SetDesiredResponse:
        """Set and remove targets under a condition."""
        caller = current_caller()
        action = self._targets(request)
        if action.units or action.conditions:
            action = await self._units.targets(await self._reading.twin(caller.tenant, request.twin_id), action)
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            action,
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        state = await self._reading.twin(caller.tenant, request.twin_id)
        desired = state.replica.desired
        made = (state.commands.get(command_id) for command_id in decided.verdict.ids)
        return statesync_pb2.SetDesiredResponse(
            position=position_to_message(decided.position),
            desired=desired_to_message(desired.revision, desired.values.values()),
            delta=delta_to_message(state.replica.delta),
            commands=(command_to_message(command) for command in made if command is not None),
        )

    async def acknowledge_desired(
        self, request: statesync_pb2.AcknowledgeDesiredRequest, context: Any
    ) -> statesync_pb2.AcknowledgeDesiredResponse:
        """Take what a device says of its targets."""
        caller = current_caller()
        require_twin_id(request.twin_id)
        if not 1 <= len(request.items) <= MAX_TARGETS:
            raise invalid_field("items", f"must hold 1 to {MAX_TARGETS:,} channels")
        items = desired_items(request.items)
        for i, item in enumerate(items):
            require_name(item.channel, f"items[{i}].channel")
            if item.state not in (DesiredState.DELIVERED, DesiredState.REJECTED):
                raise invalid_field(f"items[{i}].state", "must be DELIVERED or REJECTED")
            if item.set_offset <= 0:
                raise invalid_field(f"items[{i}].set_offset", "must be the offset of the desired value it is about")
            if len(item.reason.encode()) > MAX_REASON_BYTES:
                raise invalid_field(f"items[{i}].reason", f"must be at most {MAX_REASON_BYTES:,} bytes")
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            AcknowledgeDesired(twin_id=request.twin_id, items=items),
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        desired = (await self._reading.twin(caller.tenant, request.twin_id)).replica.desired
        return statesync_pb2.AcknowledgeDesiredResponse(
            position=position_to_message(decided.position),
            desired=desired_to_message(desired.revision, desired.values.values()),
        )

    async def record_prediction(
        self, request: statesync_pb2.RecordPredictionRequest, context: Any
    ) -> statesync_pb2.RecordPredictionResponse:
        """Write a prediction."""
        caller = current_caller()
        require_twin_id(request.twin_id)
        _check_prediction(request.prediction)
        check_conditions_count(len(request.conditions))
        if request.HasField("if_revision") and request.if_revision < 0:
            raise invalid_field("if_revision", "must be 0 (nothing was ever predicted) or greater")
        state = await self._reading.twin(caller.tenant, request.twin_id)
        action = RecordPrediction(
            twin_id=request.twin_id,
            prediction=await self._units.prediction(state, prediction_from_message(request.prediction)),
            if_revision=request.if_revision if request.HasField("if_revision") else None,
            conditions=await self._units.conditions(state, conditions_from_messages(request.conditions)),
        )
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            action,
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        return statesync_pb2.RecordPredictionResponse(
            position=position_to_message(decided.position), applied=decided.verdict.outcome is Outcome.ACCEPTED
        )

    async def watch(self, request: statesync_pb2.WatchRequest, context: Any) -> AsyncGenerator[bytes, None]:
        """Stream snapshot and changes."""
        async for frame in self._watches.watch(current_caller().tenant, request):
            yield frame

    async def verify_replicas(
        self, request: statesync_pb2.VerifyReplicasRequest, context: Any
    ) -> AsyncGenerator[statesync_pb2.VerifyReplicasResponse, None]:
        """Prove the replicas."""
        async for step in verify(self._verifier, self._reading, current_caller().tenant, request):
            yield step

    def _targets(self, request: statesync_pb2.SetDesiredRequest) -> SetDesired:
        require_twin_id(request.twin_id)
        if not request.values and not request.remove:
            raise invalid_field("values", "is empty and so is remove; name at least one channel")
        if len(request.values) + len(request.remove) > MAX_TARGETS:
            raise invalid_field("values", f"must hold, with remove, at most {MAX_TARGETS:,} channels")
        for channel in (*request.values, *request.remove):
            require_name(channel, f"values[{channel}]" if channel in request.values else "remove")
        both = sorted(set(request.values) & set(request.remove))
        if both:
            raise invalid_field("remove", f"names channels that values sets: {', '.join(both[:5])}")
        if request.HasField("if_revision") and request.if_revision < 0:
            raise invalid_field("if_revision", "must be 0 (nothing was ever desired) or greater")
        for name, given in (("units", request.units), ("tolerances", request.tolerances)):
            others = sorted(set(given) - set(request.values))
            if others:
                raise invalid_field(name, f"names channels that values does not set: {', '.join(others[:5])}")
        for channel, tolerance in request.tolerances.items():
            if not (isfinite(tolerance) and tolerance >= 0):
                raise invalid_field(f"tolerances[{channel}]", "must be 0 or greater")
        check_conditions_count(len(request.conditions))
        deadline = None
        if request.HasField("deadline"):
            duration_us = duration_from_message(request.deadline)
            if not 0 < duration_us <= MAX_SPAN_US:
                raise invalid_field(
                    "deadline", "must be longer than 0 and at most 100 years; leave it out for no deadline"
                )
            deadline = self._clock.now_unix_us() + duration_us
        return SetDesired(
            twin_id=request.twin_id,
            values=values_from_messages(request.values, "values"),
            remove=tuple(request.remove),
            if_revision=request.if_revision if request.HasField("if_revision") else None,
            deadline_unix_us=deadline,
            units={channel: unit for channel, unit in request.units.items() if unit},
            tolerances=dict(request.tolerances),
            conditions=conditions_from_messages(request.conditions),
        )


def check_conditions_count(count: int) -> None:
    """Refuse more conditions than a write may have."""
    if count > MAX_CONDITIONS:
        raise invalid_field("conditions", f"must hold at most {MAX_CONDITIONS}")


def _check_prediction(prediction: prediction_pb2.Prediction) -> None:
    at = "prediction"
    require_name(prediction.channel, f"{at}.channel")
    require_resource_id(prediction.model_id, f"{at}.model_id")
    if not prediction.HasField("at") or not prediction.HasField("valid_until"):
        raise invalid_field(f"{at}.at", "at and valid_until are required")
    if prediction.input_offset < 0:
        raise invalid_field(f"{at}.input_offset", "must be the offset that the inputs reflect")
    if prediction.step_us <= 0:
        raise invalid_field(f"{at}.step_us", "must be greater than 0")
    levels = list(prediction.quantile_levels)
    if not levels or levels != sorted(set(levels)) or not 0.0 < levels[0] <= levels[-1] < 1.0:
        raise invalid_field(f"{at}.quantile_levels", "must be increasing and within (0, 1)")
    count = len(prediction.values)
    if not count or count % len(levels) or count > MAX_PREDICTED:
        raise invalid_field(
            f"{at}.values",
            f"must hold steps x {len(levels)} levels, at most {MAX_PREDICTED:,} numbers; {count} were found",
        )
    if not all(map(isfinite, prediction.values)):
        raise invalid_field(f"{at}.values", "must all be finite numbers")
