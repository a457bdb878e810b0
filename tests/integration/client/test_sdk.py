"""The SDK against the real services."""

import asyncio
import signal
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

import twinmesh_client as tm
from twinmesh_client.readings import Reading
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section

pytestmark = pytest.mark.timeout(180)

PUMP = tm.twin_type(
    "sdk-pump@1",
    [
        tm.channel("flow", "m3/h", minimum=0, maximum=500),
        tm.channel("oil", "Cel"),
        tm.channel("stage", kind="state", controllable=True),
        tm.channel("speed", "%", controllable=True, set_command="set_speed"),
        tm.channel("on", kind="bool"),
        tm.channel("note", kind="text"),
    ],
    commands=[tm.command("set_speed", "value")],
)


@pytest.fixture
async def pump(mesh, request):
    await mesh.types.create(PUMP)
    name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")[:100]
    return await mesh.twins.create(name, type="sdk-pump@1", time_zone="Europe/Berlin")


def recent(n: int, freq: str = "1s") -> pd.DatetimeIndex:
    return pd.date_range(end=datetime.now(UTC), periods=n, freq=freq, name="time").floor("us")


async def test_a_frame_goes_in_and_comes_back_in_the_channels_own_unit(pump):
    frame = pd.DataFrame(
        {"flow": [1.5, 2.5, 700.0], "oil": [140.0, np.nan, 141.8], "on": [True, False, True], "note": ["a", None, "ü"]},
        index=recent(3),
    )
    ack = await pump.write(frame, units={"oil": "degF"})
    assert (ack.accepted, ack.flagged, ack.quarantined, ack.duplicate) == (10, 1, 0, 0)
    back = await pump.read(last="1min", min_offset=ack.offset)
    assert isinstance(back, Reading)
    assert back["flow"].values.tolist() == [1.5, 2.5, 700.0]
    assert back["flow"].quality.tolist() == [tm.Quality.GOOD, tm.Quality.GOOD, tm.Quality.BAD]
    assert back["oil"].values == pytest.approx([60.0, 61.0])
    assert back["oil"].unit == "Cel"
    assert back["note"].values.tolist() == ["a", "ü"]
    assert (back.to_pandas().index == frame.index).all()


async def test_aggregates_summaries_and_latest(pump):
    index = pd.date_range("2026-11-20", periods=120, freq="1min", tz="UTC")
    ack = await pump.write(pd.DataFrame({"flow": np.arange(120.0)}, index=index))
    end = index[-1] + pd.Timedelta("1min")
    buckets = await pump.read("flow", start=index[0], end=end, every="1h", agg=("mean", "max"), min_offset=ack.offset)
    assert buckets.to_pandas()["flow.mean"].tolist() == [29.5, 89.5]
    assert buckets.to_pandas()["flow.max"].tolist() == [59.0, 119.0]
    (summary,) = [s for s in await pump.series() if s.channel == "flow"]
    assert (summary.point_count, summary.first_time, summary.last_time) == (120, index[0], index[-1])
    assert (await pump.latest("flow"))["flow"].values.tolist() == [119.0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"nope": 1.0}, "UNKNOWN_CHANNEL"),
        ({"flow": float("nan")}, "NOT_FINITE"),
        ({"flow": float("inf")}, "NOT_FINITE"),
    ],
)
async def test_a_bad_row_is_kept_aside_with_its_reason(mesh, pump, values, reason):
    ack = await pump.write_values(values)
    assert (ack.accepted, ack.quarantined) == (0, 1)
    assert ack.outcomes[0].reason.name == reason
    assert ack.outcomes[0].example
    rows = (await mesh.quarantine(twin_id=pump.twin_id)).rows
    assert rows[0].reason.name == reason


async def test_times_that_cannot_be_are_kept_aside(pump):
    far = {"time": datetime.now(UTC) + timedelta(days=400)}
    assert (await pump.write_values({"flow": 1.0}, **far)).quarantined == 1
    assert (await pump.write_values({"flow": 1.0}, time="1969-12-31T23:00:00Z")).quarantined == 1


async def test_an_empty_frame_is_refused(pump):
    with pytest.raises(tm.InvalidArgument, match="holds no value"):
        await pump.write(pd.DataFrame({"flow": [np.nan]}, index=recent(1)))


async def test_a_unit_that_does_not_fit_is_kept_aside(pump):
    ack = await pump.write_values({"oil": 1.0}, units={"oil": "kW"})
    assert ack.outcomes[0].reason.name == "INCOMPATIBLE_UNIT"


async def test_creating_twice_is_an_error_unless_said(mesh, pump):
    with pytest.raises(tm.AlreadyExists):
        await mesh.twins.create(pump.twin_id, type="sdk-pump")
    assert (await mesh.twins.create(pump.twin_id, type="sdk-pump", if_absent=True)).twin_id == pump.twin_id
    with pytest.raises(tm.NotFound, match="twinmesh types create"):
        await mesh.twins.create("x", type="no-such-type")


async def test_a_target_is_met_and_seen_to_be(pump):
    want = await pump.set_desired({"stage": 2}, deadline="30s")
    assert want.delta["stage"].desired == 2
    await pump.write_values({"stage": 2})
    kinds = []
    async with asyncio.timeout(20), aclosing(pump.watch(resume_after=want.before)) as changes:
        async for event in changes:
            kinds.append(event.kind)
            if event.converged(want):
                break
    assert kinds[0] == "CHANGED"
    again = await pump.set_desired({"stage": 2}, if_revision=want.revision)
    async with asyncio.timeout(20), aclosing(pump.watch(resume_after=again.before)) as changes:
        async for event in changes:
            if event.converged(again):
                break
    with pytest.raises(tm.Conflict):
        await pump.set_desired({"stage": 3}, if_revision=0)


async def test_a_missed_deadline_raises_with_the_reason(pump):
    async def wait(want):
        async with asyncio.timeout(20), aclosing(pump.watch(resume_after=want.before)) as changes:
            async for event in changes:
                if event.converged(want):
                    return

    with pytest.raises(tm.NotConverged, match="deadline"):
        await wait(await pump.set_desired({"stage": 5}, deadline="500ms"))


async def test_a_device_obeys_or_refuses(mesh, pump):
    async def set_speed(order):
        if order.args["value"] > 90:
            raise tm.Refused("too fast")
        await pump.write_values({"speed": order.args["value"]})
        return "done"

    device = asyncio.create_task(mesh.device([pump.twin_id], {"set_speed": set_speed}).run())
    try:
        want = await pump.set_desired({"speed": 55.0})
        async with asyncio.timeout(20), aclosing(pump.watch(resume_after=want.before)) as changes:
            async for event in changes:
                if event.converged(want):
                    break
        refused = await pump.set_desired({"speed": 95.0})

        async def wait():
            async with asyncio.timeout(20), aclosing(pump.watch(resume_after=refused.before)) as changes:
                async for event in changes:
                    if event.converged(refused):
                        return

        with pytest.raises(tm.NotConverged, match="too fast"):
            await wait()
    finally:
        device.cancel()
        await asyncio.gather(device, return_exceptions=True)


def rows(twin_id: str, start_us: int, n: int) -> ObservationBatch:
    times = start_us + 1_000_000 * np.arange(n, dtype=np.int64)
    return ObservationBatch(
        series=(SeriesKey(twin_id=twin_id, channel="flow"),),
        doubles=double_section(np.zeros(n, np.uint32), times, np.arange(n) % 500.0),
    )


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["storage", "ingestion"])
async def test_a_writer_stores_everything_once_through_a_kill(running_mesh, mesh, pump, victim):
    start = int((datetime.now(UTC) - timedelta(days=2)).timestamp()) * 1_000_000
    restarts = running_mesh.restarts(victim)
    async with mesh.writer(f"kill-{victim}") as writer:
        for i in range(40):
            await writer.write(rows(pump.twin_id, start + i * 1_000_000_000, 1_000))
            if i == 15:
                running_mesh.kill(victim, signal.SIGKILL)
        ack = await writer.flush()
        assert ack.accepted + writer.durable_without_ack == 40_000
    await pump.latest("flow", min_offset=ack.offset)
    statistics = await mesh.statistics(pump.twin_id)
    assert (statistics.points, statistics.quarantined) == (40_000, 0)
    await asyncio.to_thread(running_mesh.until_restarted, victim, restarts + 1)


async def test_what_was_is_told_at_an_offset_and_at_a_time(mesh, pump):
    first = await pump.write_values({"flow": 1.0})
    await pump.get(min_offset=first.offset)
    between = datetime.now(UTC)
    second = await pump.write_values({"flow": 2.0})
    now = await pump.get(min_offset=second.offset)
    assert now.reported["flow"].value == 2.0
    async with asyncio.timeout(30):
        while True:
            try:
                then = await pump.get(at_offset=first.offset)
                break
            except tm.OutOfRange:  # nothing of the past is kept before the first checkpoint of this mesh
                await asyncio.sleep(0.5)
    assert (then.reported["flow"].value, then.revision < now.revision) == (1.0, True)
    assert then.as_of.offset == first.offset
    assert (await pump.get(at=between)).reported["flow"].value == 1.0
    twins = await mesh.twins.list(at_offset=first.offset)
    assert pump.twin_id in {t.twin_id for t in twins}


@pytest.mark.faults
async def test_a_watch_goes_on_through_a_kill_without_gap_or_repetition(running_mesh, mesh, pump):
    seen = []
    watch = pump.watch(keep_replicas=True)
    async with asyncio.timeout(90), aclosing(watch) as changes:
        async for event in changes:
            if event.kind == "SYNCED":
                break
        for i in range(30):
            await pump.write_values({"flow": float(i)})
            if i == 10:
                running_mesh.kill("statesync", signal.SIGKILL)
        async for event in changes:
            assert event.kind == "CHANGED"
            # Connectivity is told as well, and changes no fact.
            seen += [event.reported["flow"].value] if event.reported else []
            if seen and seen[-1] == 29.0:
                break
    assert seen == [float(i) for i in range(30)]
    assert (watch.proof.gaps, watch.proof.resets) == (0, 0)
    assert watch.proof.resumes >= 1
    assert watch.replicas[pump.twin_id].reported["flow"].value == 29.0


async def test_deleting_is_told(mesh, pump):
    async with asyncio.timeout(20), aclosing(pump.watch()) as changes:
        async for event in changes:
            if event.kind == "SYNCED":
                await mesh.twins.delete(pump.twin_id)
            if event.kind == "DELETED":
                break
    with pytest.raises(tm.NotFound):
        await pump.get()


async def test_contexts_and_targets(mesh, target):
    assert mesh.endpoints["ingestion"] == target
    assert mesh.mode == "open"
    assert (await mesh.position()).offset == await mesh.head()
