"""Desired, conditions, predictions, events and lists over the real log."""

# mypy: disable-error-code="arg-type"
# Why: messages are built from enum names, which the stubs do not know.

import asyncio
import json
import time
from typing import Any

import pytest
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import condition_pb2, event_pb2, observation_pb2, prediction_pb2, replica_pb2, twin_pb2
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

        absent = condition_pb2.StateCondition(
            facet="CONDITION_FACET_DESIRED", channel="target", operator="CONDITION_OPERATOR_ABSENT"
        )

        async def race(i: int) -> Any:
            try:
                condition: Any = {"if_revision": 0} if i % 2 else {"conditions": [absent]}
                return await desire(sync, "p1", "target", float(i), **condition)
            except (Conflict, FailedPrecondition) as lost:
                return lost

        outcomes = await asyncio.gather(*(race(i) for i in range(20)))
        won = [o for o in outcomes if not isinstance(o, TwinmeshError)]
        assert len(won) == 1
        winner = won[0].desired.values[0].value.double_value
        for lost in (o for o in outcomes if isinstance(o, TwinmeshError)):
            assert lost.reason in ("REVISION_CONFLICT", "CONDITION_NOT_MET")
            current = json.loads(lost.metadata["current"])
            assert current["revisions"]["desired"] == 1
            assert current["channels"]["target"]["desired"] == winner
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


async def test_targets_conditions_and_predictions_may_be_in_another_unit(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        room = twin_pb2.TwinType(
            twin_type_id="room",
            version=1,
            channels=[
                twin_pb2.ChannelSpec(
                    name="air", kind="CHANNEL_KIND_GAUGE", unit="degC", controllable=True, tolerance=0.1
                )
            ],
        )
        made = statesync_pb2.CreateTwinTypeRequest(twin_type=room)
        await call(sync.twins.CreateTwinType, made, timeout_s=TIMEOUT_S)
        request = statesync_pb2.CreateTwinRequest(twin=twin_pb2.Twin(twin_id="r1", twin_type_id="room"))
        await call(sync.twins.CreateTwin, request, timeout_s=TIMEOUT_S)
        answer = await desire(sync, "r1", "air", 71.6, units={"air": "degF"}, tolerances={"air": 1.8})
        value = answer.desired.values[0]
        assert value.value.double_value == pytest.approx(22.0)
        assert value.tolerance == pytest.approx(1.0), "a difference: 1.8 degF are 1 K"
        cold = condition_pb2.StateCondition(
            facet="CONDITION_FACET_DESIRED", channel="air", operator=3, value=number(70.0), unit="degF"
        )
        with pytest.raises(FailedPrecondition) as unmet:
            await desire(sync, "r1", "air", 20.0, conditions=[cold])
        assert unmet.value.reason == "CONDITION_NOT_MET"
        cold.value.double_value = 72.0
        await desire(sync, "r1", "air", 20.0, conditions=[cold])
        with pytest.raises(InvalidArgument) as wrong:
            await desire(sync, "r1", "air", 1.0, units={"air": "kW"})
        assert (wrong.value.reason, wrong.value.field_violations[0].field) == ("INCOMPATIBLE_UNIT", "units[air]")
        with pytest.raises(InvalidArgument, match="units"):
            await desire(sync, "r1", "air", 1.0, units={"water": "Cel"})
        predicted = prediction_pb2.Prediction(
            channel="air", model_id="m", model_version=1, step_us=1, quantile_levels=[0.5], values=[50.0], unit="degF"
        )
        predicted.at.FromMicroseconds(NOW)
        predicted.valid_until.FromMicroseconds(NOW + 1)
        record = statesync_pb2.RecordPredictionRequest(twin_id="r1", prediction=predicted)
        await call(sync.replicas.RecordPrediction, record, timeout_s=TIMEOUT_S)
        kept = (await sync.replica("r1")).predicted.predictions[0]
        assert (kept.values[0], kept.unit) == (pytest.approx(10.0), "degC")


async def test_a_device_says_what_it_makes_of_its_targets(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        wanted = await desire(sync, "p1", "target", 40.0)

        async def says(state: Any, offset: int, reason: str = "") -> Any:
            item = replica_pb2.DesiredAcknowledgement(channel="target", set_offset=offset, state=state, reason=reason)
            request = statesync_pb2.AcknowledgeDesiredRequest(twin_id="p1", items=[item])
            answer = await call(sync.replicas.AcknowledgeDesired, request, timeout_s=TIMEOUT_S)
            return answer.desired.values[0]

        assert (await says("DESIRED_STATE_DELIVERED", 1)).state == replica_pb2.DESIRED_STATE_PENDING
        offset = wanted.position.offset
        assert (await says("DESIRED_STATE_DELIVERED", offset)).state == replica_pb2.DESIRED_STATE_DELIVERED
        refused = await says("DESIRED_STATE_REJECTED", offset, "locked")
        assert (refused.state, refused.rejection) == (replica_pb2.DESIRED_STATE_REJECTED, "locked")
        assert refused.delta_since == refused.set_time
        with pytest.raises(InvalidArgument, match=r"items\[0\]\.state"):
            await says("DESIRED_STATE_APPLIED", offset)


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
