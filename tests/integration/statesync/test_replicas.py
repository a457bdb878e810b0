"""Desired, conditions, predictions, events and lists over the real log."""

import asyncio
import time
from typing import Any

import pytest
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import event_pb2, observation_pb2, prediction_pb2, replica_pb2, twin_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    TwinmeshError,
)

NOW = time.time_ns() // 1_000


def number(value: float) -> observation_pb2.Value:
    return observation_pb2.Value(double_value=value)


def desire(sync: StateSync, twin_id: str, channel: str, value: float, **more: Any) -> Any:
    request = statesync_pb2.SetDesiredRequest(twin_id=twin_id, values={channel: number(value)}, **more)
    return call(sync.replicas.SetDesired, request, timeout_s=TIMEOUT_S)


async def test_of_twenty_racers_exactly_one_wins_and_the_others_get_the_current_revision(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")

        async def race(i: int) -> Any:
            try:
                return await desire(sync, "p1", "target", float(i), if_revision=0)
            except Conflict as conflict:
                return conflict

        outcomes = await asyncio.gather(*(race(i) for i in range(20)))
        won = [o for o in outcomes if not isinstance(o, Conflict)]
        assert len(won) == 1
        assert all(o.metadata["current_revision"] == "1" for o in outcomes if isinstance(o, Conflict))
        replica = await sync.replica("p1")
        assert replica.desired.values[0].value == won[0].desired.values[0].value
        assert won[0].delta.items[0].channel == "target"


async def test_the_same_request_again_has_the_same_answer_and_another_content_is_refused(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        first = await desire(sync, "p1", "target", 1.0, request_id="r-1", deadline={"seconds": 60})
        again = await desire(sync, "p1", "target", 1.0, request_id="r-1", deadline={"seconds": 60})
        assert again.position == first.position
        assert (await sync.replica("p1")).desired.revision == 1
        with pytest.raises(InvalidArgument) as reused:
            await desire(sync, "p1", "target", 2.0, request_id="r-1")
        assert reused.value.reason == "REQUEST_ID_REUSED"
        with pytest.raises(Conflict):
            await desire(sync, "p1", "target", 2.0, request_id="r-2", if_revision=7)
        with pytest.raises(Conflict):
            await desire(sync, "p1", "target", 2.0, request_id="r-2", if_revision=7)


async def test_a_missed_deadline_becomes_an_event(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        await desire(sync, "p1", "target", 1.0, deadline={"nanos": 200_000_000})
        request = statesync_pb2.ListEventsRequest(twin_id="p1")
        async with asyncio.timeout(5):
            while not (answer := await call(sync.events.ListEvents, request, timeout_s=TIMEOUT_S)).events:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert answer.events[0].kind == event_pb2.EVENT_KIND_NOT_CONVERGED
        target_value = (await sync.replica("p1")).desired.values[0]
        assert target_value.state == replica_pb2.DESIRED_STATE_EXPIRED


async def test_connectivity_is_derived_and_a_recording_is_told_from_life(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        for twin_id, event_time in (("live", time.time_ns() // 1_000), ("recorded", NOW - 3_600_000_000)):
            await sync.make_twin(twin_id)
            await sync.observe(twin_id, "temperature", [event_time], [1.0])
        async with asyncio.timeout(6):
            while (await sync.replica("recorded")).connectivity != replica_pb2.CONNECTIVITY_REPLAY:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            while (await sync.replica("live")).connectivity != replica_pb2.CONNECTIVITY_ONLINE:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_predictions_events_and_lists(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        for i in range(5):
            await sync.make_twin(f"p{i}")
        again = await sync.make_twin("p0", if_absent=True)
        assert not again.created

        def predict(input_offset: int) -> Any:
            made = prediction_pb2.Prediction(
                channel="temperature",
                model_id="m",
                model_version=1,
                input_offset=input_offset,
                step_us=60_000_000,
                quantile_levels=[0.1, 0.5, 0.9],
                values=[1, 2, 3, 2, 3, 4],
                unit="Cel",
            )
            made.at.FromMicroseconds(NOW)
            made.valid_until.FromMicroseconds(NOW + 120_000_000)
            request = statesync_pb2.RecordPredictionRequest(twin_id="p0", prediction=made)
            return call(sync.replicas.RecordPrediction, request, timeout_s=TIMEOUT_S)

        assert (await predict(5)).applied
        assert not (await predict(4)).applied
        assert (await sync.replica("p0")).predicted.predictions[0].input_offset == 5

        event = event_pb2.Event(twin_id="p0", kind=event_pb2.EVENT_KIND_FAILURE, mode="bearing")
        event.start_time.FromMicroseconds(NOW)
        made = await call(sync.events.RecordEvent, statesync_pb2.RecordEventRequest(event=event), timeout_s=TIMEOUT_S)
        listed = await call(sync.events.ListEvents, statesync_pb2.ListEventsRequest(twin_id="p0"), timeout_s=TIMEOUT_S)
        assert list(listed.events) == [made.event]

        ids: list[str] = []
        token = ""
        while True:
            request = statesync_pb2.ListTwinsRequest(page_size=2, page_token=token)
            page = await call(sync.twins.ListTwins, request, timeout_s=TIMEOUT_S)
            ids += [summary.twin.twin_id for summary in page.twins]
            token = page.next_page_token
            if not token:
                break
            if len(ids) == 2:  # pages are one snapshot of ids: what changes meanwhile does not show
                await sync.make_twin("p11")
                await call(sync.twins.DeleteTwin, statesync_pb2.DeleteTwinRequest(twin_id="p4"), timeout_s=TIMEOUT_S)
        assert ids == ["p0", "p1", "p2", "p3", "p4"]
        types = await call(sync.twins.ListTwinTypes, statesync_pb2.ListTwinTypesRequest(), timeout_s=TIMEOUT_S)
        assert [t.twin_type_id for t in types.twin_types] == ["pump"]


async def test_errors_name_field_reason_and_remedy(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        cases: list[tuple[type[TwinmeshError], str, Any]] = [
            (NotFound, "TWIN_NOT_FOUND", sync.replica("ghost")),
            (InvalidArgument, "INVALID_FIELD", sync.replica("bad id")),
            (OutOfRange, "FUTURE_OFFSET", sync.replica("p1", 1_000_000)),
            (NotFound, "CHANNEL_NOT_FOUND", desire(sync, "p1", "ghost", 1.0)),
            (FailedPrecondition, "NOT_CONTROLLABLE", desire(sync, "p1", "temperature", 1.0)),
            (InvalidArgument, "INVALID_FIELD", desire(sync, "p1", "speed", 1e9)),
            (InvalidArgument, "INVALID_FIELD", desire(sync, "p1", "target", float("nan"))),
            (AlreadyExists, "ALREADY_EXISTS", sync.make_twin("p1")),
            (
                InvalidArgument,
                "INVALID_FIELD",
                call(
                    sync.twins.CreateTwin,
                    statesync_pb2.CreateTwinRequest(
                        twin=twin_pb2.Twin(twin_id="x", twin_type_id="pump", time_zone="Mars/Olympus")
                    ),
                    timeout_s=TIMEOUT_S,
                ),
            ),
        ]
        for kind, reason, request in cases:
            with pytest.raises(kind) as caught:
                await request
            assert caught.value.reason == reason
            assert "Traceback" not in caught.value.message
        with pytest.raises(NotFound) as unknown:
            await sync.replica("ghost")
        assert unknown.value.metadata["remedy"] == "twinmesh twins create ghost --type pump@1"
