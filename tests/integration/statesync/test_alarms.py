"""Alarms over the wire: rules checked when a type is made, alarms in reads and watches, time that passes by itself."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import alarm_pb2, event_pb2, observation_pb2, twin_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, NotFound


def now_us() -> int:
    return time.time_ns() // 1_000


def rule(on_delay_s: int = 0) -> alarm_pb2.AlarmRule:
    limit = alarm_pb2.ThresholdCondition(channel="oil", high=194.0, hysteresis=9.0, unit="degF")
    return alarm_pb2.AlarmRule(name="hot", severity=800, threshold=limit, on_delay=Duration(seconds=on_delay_s))


async def make_boiler(sync: StateSync, *rules: alarm_pb2.AlarmRule) -> Any:
    gauge = observation_pb2.CHANNEL_KIND_GAUGE
    twin_type = twin_pb2.TwinType(
        twin_type_id="boiler",
        version=1,
        channels=[twin_pb2.ChannelSpec(name="oil", kind=gauge, unit="Cel")],
        rules=rules,
    )
    made = await call(
        sync.twins.CreateTwinType, statesync_pb2.CreateTwinTypeRequest(twin_type=twin_type), timeout_s=TIMEOUT_S
    )
    await call(
        sync.twins.CreateTwin,
        statesync_pb2.CreateTwinRequest(twin=twin_pb2.Twin(twin_id="b", twin_type_id="boiler")),
        timeout_s=TIMEOUT_S,
    )
    return made.twin_type


async def alarm(sync: StateSync, min_offset: int = 0) -> Any:
    request = statesync_pb2.GetAlarmRequest(twin_id="b", rule="hot", min_offset=min_offset)
    return (await call(sync.alarms.GetAlarm, request, timeout_s=TIMEOUT_S)).alarm


@asynccontextmanager
async def watching(sync: StateSync) -> AsyncIterator[Any]:
    """Watch the boiler, from when its snapshot is complete."""
    async with sync.watch(statesync_pb2.WatchRequest(twin_ids=["b"])) as frames:
        async for frame in frames:
            if frame.synced:
                break
        yield frames


async def next_alarm(frames: Any, transition: int) -> Any:
    """Return the next alarm of a watch that this happened to."""
    async for frame in frames:
        for event in frame.events:
            for found in event.alarms:
                if found.transition == transition:
                    return found
    raise AssertionError("the watch ended")


async def test_an_alarm_from_its_rule_to_its_acknowledgement(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        stored = await make_boiler(sync, rule())
        assert stored.rules[0].threshold.high == pytest.approx(90.0), "limits are kept in the channel's unit"
        assert stored.rules[0].threshold.hysteresis == pytest.approx(5.0)
        assert (await alarm(sync)).state == alarm_pb2.ALARM_STATE_CLEARED
        async with watching(sync) as frames:
            await sync.observe("b", "oil", [now_us()], [95.0])
            raised = await next_alarm(frames, alarm_pb2.ALARM_TRANSITION_RAISED)
            assert (raised.level, raised.value.double_value, raised.severity) == ("HIGH", 95.0, 800)
            request = statesync_pb2.AcknowledgeAlarmRequest(twin_id="b", rule="hot", note="on it", if_raise_count=1)
            await call(sync.alarms.AcknowledgeAlarm, request, timeout_s=TIMEOUT_S)
            offset = await sync.observe("b", "oil", [now_us()], [20.0])
            cleared = await next_alarm(frames, alarm_pb2.ALARM_TRANSITION_CLEARED)
            assert (cleared.offset, cleared.acknowledge_note) == (offset, "on it")
        assert not (await sync.replica("b", offset)).alarms
        with pytest.raises(FailedPrecondition):
            await call(sync.alarms.AcknowledgeAlarm, request, timeout_s=TIMEOUT_S)
        wrong = statesync_pb2.GetAlarmRequest(twin_id="b", rule="cold")
        with pytest.raises(NotFound):
            await call(sync.alarms.GetAlarm, wrong, timeout_s=TIMEOUT_S)


async def test_delays_and_shelvings_end_by_themselves_also_across_a_restart(database_url: str) -> None:
    async with storage(database_url) as target:
        async with statesync(database_url, target) as sync:
            await make_boiler(sync, rule(on_delay_s=3))
            await sync.observe("b", "oil", [now_us()], [95.0])
            shelve = statesync_pb2.ShelveAlarmRequest(twin_id="b", rule="hot", duration=Duration(seconds=5))
            shelved = (await call(sync.alarms.ShelveAlarm, shelve, timeout_s=TIMEOUT_S)).alarm
            assert shelved.HasField("shelved_until")
        async with statesync(database_url, target) as sync:
            async with watching(sync) as frames:
                raised = await next_alarm(frames, alarm_pb2.ALARM_TRANSITION_RAISED)
                assert raised.HasField("shelved_until")
                free = await next_alarm(frames, alarm_pb2.ALARM_TRANSITION_UNSHELVED)
                assert free.state == alarm_pb2.ALARM_STATE_ACTIVE
            told = statesync_pb2.ListAlarmsRequest(only_told=True, min_severity=800, twin_type_id="boiler")
            answer = await call(sync.alarms.ListAlarms, told, timeout_s=TIMEOUT_S)
            assert [a.rule for a in answer.alarms] == ["hot"]


async def test_maintenance_suppresses_until_it_is_ended(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await make_boiler(sync, rule())
        began = Timestamp(seconds=int(time.time()) - 10)
        work = event_pb2.Event(twin_id="b", kind=event_pb2.EVENT_KIND_MAINTENANCE, start_time=began)
        recorded = await call(
            sync.events.RecordEvent, statesync_pb2.RecordEventRequest(event=work), timeout_s=TIMEOUT_S
        )
        offset = await sync.observe("b", "oil", [now_us()], [95.0])
        assert (await alarm(sync, offset)).suppressed_by == recorded.event.event_id
        end = statesync_pb2.EndEventRequest(
            twin_id="b", event_id=recorded.event.event_id, end_time=Timestamp(seconds=int(time.time()))
        )
        ended = await call(sync.events.EndEvent, end, timeout_s=TIMEOUT_S)
        found = await alarm(sync, ended.position.offset)
        assert (found.suppressed_by, found.transition) == ("", alarm_pb2.ALARM_TRANSITION_UNSUPPRESSED)


async def test_a_wrong_rule_is_refused_when_its_type_is_made(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        wrong = alarm_pb2.AlarmRule(name="odd", severity=1, expression="reported.oli > 1.0")
        with pytest.raises(InvalidArgument) as caught:
            await make_boiler(sync, rule(), wrong)
        assert caught.value.field_violations[0].field == "twin_type.rules[1].expression"
        assert "the type has oil" in str(caught.value)
