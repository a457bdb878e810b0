"""AlarmService: alarms listed, acknowledged, shelved, and taken out of service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import AlarmServiceServicer
from twinmesh.type.v1 import alarm_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_name, require_resource_id, require_twin_id
from twinmesh_core.time import Clock
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.registry_mapping import duration_from_message
from twinmesh_statesync.domain.alarms.actions import (
    MAX_SHELVING_US,
    AcknowledgeAlarm,
    AlarmAction,
    SetAlarmService,
    ShelveAlarm,
    UnshelveAlarm,
    require_rule,
)
from twinmesh_statesync.domain.alarms.alarm import Alarm, AlarmState
from twinmesh_statesync.domain.twin_state import TwinState
from twinmesh_statesync.domain.writer import Decided, Writer, request_id_or_new
from twinmesh_statesync.rpc.mapping.alarms import alarm_state_from_message, alarm_to_message
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.mutation import content_of
from twinmesh_statesync.rpc.reading import Reading, page_of, page_size, read_token

MAX_NOTE_BYTES: Final = 1_024
_OPEN: Final = frozenset({AlarmState.ACTIVE, AlarmState.ACKNOWLEDGED, AlarmState.RETURNED})


class AlarmServicer(AlarmServiceServicer):
    """Serves alarms.

    Args:
        reading: read access to the fold.
        writer: has mutations decided.
        clock: turns the duration of a shelving into its end.
    """

    def __init__(self, reading: Reading, writer: Writer, clock: Clock) -> None:
        self._reading = reading
        self._writer = writer
        self._clock = clock

    async def ListAlarms(  # noqa: N802
        self, request: statesync_pb2.ListAlarmsRequest, context: Any
    ) -> statesync_pb2.ListAlarmsResponse:
        """List alarms by twin and rule."""
        size, token = page_size(request.page_size), read_token(request.page_token, self._reading.live)
        states = _states(request)
        if not 0 <= request.min_severity <= 1_000:
            raise invalid_field("min_severity", "must be 1 to 1,000, or 0 for all")
        tenant = current_caller().tenant
        if request.twin_type_id:
            require_resource_id(request.twin_type_id, "twin_type_id")
        if request.twin_id:
            twins = [await self._reading.twin(tenant, request.twin_id, request.min_offset)]
        else:
            await self._reading.at_least(request.min_offset)
            known = self._reading.live.fold.states(tenant)
            twins = [known[twin_id] for twin_id in sorted(known)]
        found = [
            alarm
            for alarm in _alarms(twins, request.twin_type_id)
            if alarm.state in states
            and alarm.severity >= request.min_severity
            and (alarm.told or not request.only_told)
        ]
        pinned = token.position if token is not None else self._reading.live.position
        if token is not None:
            # By place, not by the alarm told last: it may have left the list meanwhile.
            found = [alarm for alarm in found if _key(alarm) > token.key]
        page, next_token = page_of(found, None, _key, size, pinned)
        return statesync_pb2.ListAlarmsResponse(
            alarms=map(alarm_to_message, page), next_page_token=next_token, as_of=self._reading.as_of()
        )

    async def GetAlarm(  # noqa: N802
        self, request: statesync_pb2.GetAlarmRequest, context: Any
    ) -> statesync_pb2.GetAlarmResponse:
        """Return an alarm."""
        require_name(request.rule, "rule")
        state = await self._reading.twin(current_caller().tenant, request.twin_id, request.min_offset)
        return statesync_pb2.GetAlarmResponse(alarm=_alarm(state, request.rule), as_of=self._reading.as_of())

    async def AcknowledgeAlarm(  # noqa: N802
        self, request: statesync_pb2.AcknowledgeAlarmRequest, context: Any
    ) -> statesync_pb2.AcknowledgeAlarmResponse:
        """Acknowledge an alarm."""
        _check_note(request.note)
        if request.if_raise_count < 0:
            raise invalid_field("if_raise_count", "must be 0, or an alarm's raise_count")
        action = AcknowledgeAlarm(
            twin_id=request.twin_id, rule=request.rule, note=request.note, if_raise_count=request.if_raise_count
        )
        alarm, decided = await self._move(request, action)
        return statesync_pb2.AcknowledgeAlarmResponse(alarm=alarm, position=position_to_message(decided.position))

    async def ShelveAlarm(  # noqa: N802
        self, request: statesync_pb2.ShelveAlarmRequest, context: Any
    ) -> statesync_pb2.ShelveAlarmResponse:
        """Shelve an alarm."""
        _check_note(request.note)
        duration_us = duration_from_message(request.duration)
        if not 0 < duration_us <= MAX_SHELVING_US:
            raise invalid_field("duration", "is required: longer than 0, and at most 30 days")
        action = ShelveAlarm(
            twin_id=request.twin_id,
            rule=request.rule,
            until_unix_us=self._clock.now_unix_us() + duration_us,
            note=request.note,
        )
        alarm, decided = await self._move(request, action)
        return statesync_pb2.ShelveAlarmResponse(alarm=alarm, position=position_to_message(decided.position))

    async def UnshelveAlarm(  # noqa: N802
        self, request: statesync_pb2.UnshelveAlarmRequest, context: Any
    ) -> statesync_pb2.UnshelveAlarmResponse:
        """End a shelving."""
        alarm, decided = await self._move(request, UnshelveAlarm(twin_id=request.twin_id, rule=request.rule))
        return statesync_pb2.UnshelveAlarmResponse(alarm=alarm, position=position_to_message(decided.position))

    async def SetAlarmService(  # noqa: N802
        self, request: statesync_pb2.SetAlarmServiceRequest, context: Any
    ) -> statesync_pb2.SetAlarmServiceResponse:
        """Take an alarm out of service, or put it back."""
        action = SetAlarmService(twin_id=request.twin_id, rule=request.rule, out_of_service=request.out_of_service)
        alarm, decided = await self._move(request, action)
        return statesync_pb2.SetAlarmServiceResponse(alarm=alarm, position=position_to_message(decided.position))

    async def _move(self, request: Any, action: AlarmAction) -> tuple[alarm_pb2.Alarm, Decided]:
        caller = current_caller()
        require_twin_id(request.twin_id)
        require_name(request.rule, "rule")
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            action,
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        state = await self._reading.twin(caller.tenant, request.twin_id)
        return _alarm(state, request.rule), decided


def _alarm(state: TwinState, name: str) -> alarm_pb2.Alarm:
    rule, _ = require_rule(state, name)
    found = state.replica.alarms.get(name)
    never = Alarm(twin_id=state.twin.twin_id, rule=name, channel=rule.spec.channel, severity=rule.spec.severity)
    return alarm_to_message(found or never)


def _alarms(twins: list[TwinState], twin_type_id: str) -> Iterator[Alarm]:
    for state in twins:
        if state.alive and twin_type_id in ("", state.twin.twin_type_id):
            for rule in sorted(state.replica.alarms):
                yield state.replica.alarms[rule]


def _states(request: statesync_pb2.ListAlarmsRequest) -> frozenset[AlarmState]:
    found = frozenset(map(alarm_state_from_message, request.states))
    if AlarmState.UNSPECIFIED in found:
        raise invalid_field(
            "states", "must be ACTIVE, ACKNOWLEDGED, RETURNED or CLEARED; leave out for all but the last"
        )
    return found or _OPEN


def _key(alarm: Alarm) -> str:
    # Letters, digits, '.', '_' and '-' only, so that a space sorts before all of them.
    return f"{alarm.twin_id} {alarm.rule}"


def _check_note(note: str) -> None:
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise invalid_field("note", f"must be at most {MAX_NOTE_BYTES:,} bytes")
