"""A watch resumes by itself, and a gap raises: it never passes."""

import asyncio
from contextlib import aclosing

import pytest

import twinmesh_client as tm
from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2, replica_pb2
from twinmesh_client.aio import watcher
from twinmesh_client.replicas import DeltaItem, DesiredWrite, Position, WatchEvent
from twinmesh_core.errors import FailedPrecondition, OutOfRange, Reason, ResourceExhausted, Unavailable


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr(watcher, "FIRST_PAUSE_S", 0.01)


def change(offset: int, revision: int, previous: int | None = None, twin_id: str = "t") -> statesync_pb2.WatchEvent:
    return statesync_pb2.WatchEvent(
        offset=offset,
        twin_id=twin_id,
        kind=statesync_pb2.WATCH_EVENT_KIND_CHANGED,
        revision=revision,
        previous_revision=revision - 1 if previous is None else previous,
    )


def snapshot(offset: int, revision: int) -> statesync_pb2.WatchEvent:
    return statesync_pb2.WatchEvent(
        offset=offset,
        twin_id="t",
        kind=statesync_pb2.WATCH_EVENT_KIND_SNAPSHOT,
        revision=revision,
        previous_revision=revision,
        replica=replica_pb2.Replica(revision=revision),
    )


def frame(*events: statesync_pb2.WatchEvent, through: int = 0, synced: bool = False) -> statesync_pb2.WatchResponse:
    return statesync_pb2.WatchResponse(
        events=events, through=position_pb2.LogPosition(incarnation="i", offset=through), synced=synced
    )


async def take(client, n: int, **options) -> list[WatchEvent]:
    events = []
    async with asyncio.timeout(5), aclosing(client.twins["t"].watch(**options)) as changes:
        async for event in changes:
            events.append(event)
            if len(events) == n:
                break
    return events


async def test_a_snapshot_then_changes(client, fake):
    fake.replicas.scripts = [[frame(snapshot(5, 3)), frame(through=5, synced=True), frame(change(6, 4), through=6)]]
    events = await take(client, 3)
    assert [(e.kind, e.offset) for e in events] == [("SNAPSHOT", 5), ("SYNCED", 5), ("CHANGED", 6)]
    assert events[-1].through == Position(incarnation="i", offset=6)


async def test_a_lost_connection_resumes_after_the_last_frame(client, fake):
    fake.replicas.scripts = [
        [frame(snapshot(5, 3), through=5, synced=True), frame(change(6, 4), through=6), Unavailable("gone")],
        [Unavailable("still gone")],
        [frame(change(7, 5), through=7)],
    ]
    events = await take(client, 4)
    assert [e.offset for e in events] == [5, 5, 6, 7]
    assert [r.resume_after.offset for r in fake.replicas.requests] == [0, 6, 6]
    assert not fake.replicas.requests[0].HasField("resume_after")


async def test_an_unfinished_snapshot_begins_again(client, fake):
    fake.replicas.scripts = [
        [frame(snapshot(5, 3)), Unavailable("gone")],
        [frame(snapshot(6, 4), through=6, synced=True)],
    ]
    events = await take(client, 3)
    assert [e.kind for e in events] == ["SNAPSHOT", "SNAPSHOT", "SYNCED"]
    assert not fake.replicas.requests[1].HasField("resume_after")


async def test_a_missing_revision_raises(client, fake):
    fake.replicas.scripts = [[frame(snapshot(5, 3), through=5, synced=True), frame(change(9, 6), through=9)]]
    with pytest.raises(tm.GapDetected) as caught:
        await take(client, 3)
    assert caught.value.metadata["twin_id"] == "t"


async def test_a_missing_revision_across_a_reconnect_raises(client, fake):
    fake.replicas.scripts = [
        [frame(snapshot(5, 3), through=5, synced=True), frame(change(6, 4), through=6), Unavailable("gone")],
        [frame(change(9, 6), through=9)],
    ]
    with pytest.raises(tm.GapDetected):
        await take(client, 4)


async def test_a_repeated_revision_raises(client, fake):
    fake.replicas.scripts = [[frame(change(6, 4), through=6), frame(change(6, 4), through=6)]]
    with pytest.raises(tm.GapDetected):
        await take(client, 2, resume_after=Position(incarnation="i", offset=5))


async def test_the_canary_without_the_proof_the_same_gap_would_pass(client, fake, monkeypatch):
    """The tests above prove something only because this one passes: the gap is really on the wire."""
    monkeypatch.setattr(watcher.RevisionProof, "check", lambda *_: None)
    fake.replicas.scripts = [[frame(snapshot(5, 3), through=5, synced=True), frame(change(9, 6), through=9)]]
    assert [e.revision for e in await take(client, 3)] == [3, 0, 6]


async def test_twins_are_proven_apart(client, fake):
    fake.replicas.scripts = [[frame(change(6, 4), change(7, 9, twin_id="u"), change(8, 5), through=8)]]
    assert len(await take(client, 3, resume_after=Position(incarnation="i", offset=5))) == 3


async def test_merged_changes_follow_on_one_another(client, fake):
    fake.replicas.scripts = [[frame(change(6, 4), change(9, 8, previous=4), through=9)]]
    assert len(await take(client, 2, resume_after=Position(incarnation="i", offset=5), policy="latest")) == 2


@pytest.mark.parametrize(
    "error",
    [
        OutOfRange("too old", reason=Reason.COMPACTED),
        FailedPrecondition("restored", reason=Reason.LOG_REWOUND),
        OutOfRange("in the future", reason=Reason.FUTURE_OFFSET),
    ],
)
async def test_a_position_that_cannot_be_resumed_is_an_error_or_a_reset(client, fake, error):
    after = Position(incarnation="i", offset=5)
    fake.replicas.scripts = [[error]]
    with pytest.raises(type(error)):
        await take(client, 1, resume_after=after)
    fake.replicas.scripts = [[error], [frame(snapshot(2, 1), through=2, synced=True)]]
    events = await take(client, 3, resume_after=after, resync=True)
    assert [e.kind for e in events] == ["RESET", "SNAPSHOT", "SYNCED"]


async def test_a_slow_watcher_resumes_unless_it_asked_not_to(client, fake):
    slow = ResourceExhausted("too slow", reason=Reason.WATCHER_TOO_SLOW)
    after = Position(incarnation="i", offset=5)
    fake.replicas.scripts = [[frame(change(6, 4), through=6), slow], [frame(change(7, 5), through=7)]]
    assert len(await take(client, 2, resume_after=after)) == 2
    fake.replicas.scripts = [[slow]]
    with pytest.raises(ResourceExhausted):
        await take(client, 1, resume_after=after, policy="close")


async def test_an_unknown_policy_is_refused(client):
    with pytest.raises(tm.InvalidArgument, match="policy"):
        await take(client, 1, policy="sometimes")


def want(delta=None, channels=("stage",)) -> DesiredWrite:
    return DesiredWrite(
        twin_id="t",
        before=Position(incarnation="i", offset=9),
        offset=10,
        channels=frozenset(channels),
        revision=1,
        delta=delta or {},
        commands=(),
    )


def told(offset: int, delta, twin_id: str = "t") -> WatchEvent:
    return WatchEvent(
        kind="CHANGED", offset=offset, twin_id=twin_id, delta=delta, through=Position(incarnation="i", offset=offset)
    )


def test_convergence_is_the_delta_of_the_wanted_channels():
    open_item = {"stage": DeltaItem(desired=2, reported=1)}
    assert not told(10, open_item).converged(want(open_item))
    assert not told(11, None).converged(want(open_item))
    assert told(12, {}).converged(want(open_item))
    assert told(12, {"other": DeltaItem(desired=1, reported=0)}).converged(want(open_item))
    assert not told(12, {}, twin_id="u").converged(want(open_item))
    assert not told(9, {}).converged(want(open_item))


def test_a_target_that_the_facts_met_already_converges_at_its_own_offset():
    assert told(10, None).converged(want())


def reset_frame() -> statesync_pb2.WatchResponse:
    event = statesync_pb2.WatchEvent(kind=statesync_pb2.WATCH_EVENT_KIND_RESET, offset=9)
    return statesync_pb2.WatchResponse(events=[event])


def gone(offset: int, revision: int, twin_id: str) -> statesync_pb2.WatchEvent:
    event = change(offset, revision, twin_id=twin_id)
    event.kind = statesync_pb2.WATCH_EVENT_KIND_DELETED
    return event


def snapshot_of(twin_id: str, offset: int, revision: int, temperature: float) -> statesync_pb2.WatchEvent:
    event = snapshot(offset, revision)
    event.twin_id = event.replica.twin.twin_id = twin_id
    value = event.replica.reported.values.add(channel="temperature", offset=offset)
    value.value.double_value = temperature
    return event


async def test_a_server_s_reset_tells_the_deletions_of_what_the_new_snapshot_does_not_hold(client, fake):
    fake.replicas.scripts = [
        [
            frame(snapshot_of("t", 5, 3, 1.0), snapshot_of("u", 4, 2, 1.0), snapshot_of("v", 3, 1, 1.0)),
            frame(through=5, synced=True),
            frame(gone(6, 2, "v"), through=6),
            reset_frame(),
            frame(snapshot_of("t", 2, 1, 7.0), through=2, synced=True),
            frame(change(3, 2), through=3),
        ]
    ]
    watch = client.twins.watch(keep_replicas=True)
    events = []
    async with asyncio.timeout(5), aclosing(watch) as changes:
        async for event in changes:
            events.append((event.kind, event.twin_id))
            if len(events) == 10:
                break
    assert events[5:] == [("RESET", ""), ("SNAPSHOT", "t"), ("DELETED", "u"), ("SYNCED", ""), ("CHANGED", "t")]
    assert list(watch.replicas) == ["t"]
    assert watch.replicas["t"].reported["temperature"].value == 7.0
    assert watch.replicas["t"].revision == 2
    proof = watch.proof
    assert (proof.events, proof.twins, proof.gaps, proof.resets) == (6, 1, 0, 1)


async def test_the_proof_counts_resumes_and_tells_the_position(client, fake):
    fake.replicas.scripts = [
        [frame(snapshot(5, 3), through=5, synced=True), frame(change(6, 4), through=6), Unavailable("gone")],
        [frame(change(7, 5), through=7), frame(change(8, 6), through=8)],
    ]
    watch = client.twins["t"].watch()
    async with asyncio.timeout(5), aclosing(watch):
        assert watch.proof.position is None
        async for event in watch:
            if event.offset == 8:
                break
    assert watch.proof.position == Position(incarnation="i", offset=7)
    assert (watch.proof.events, watch.proof.twins, watch.proof.resumes, watch.proof.resets) == (4, 1, 1, 0)


async def test_offsets_that_go_back_raise(client, fake):
    fake.replicas.scripts = [[frame(change(6, 4), through=6), frame(change(5, 1, twin_id="u"), through=7)]]
    with pytest.raises(tm.GapDetected, match="offset 5"):
        await take(client, 2, resume_after=Position(incarnation="i", offset=5))


async def test_the_server_is_asked_to_reset_unless_the_place_was_chosen(client, fake):
    fake.replicas.scripts = [[frame(snapshot(5, 3), through=5, synced=True)]] * 3
    after = Position(incarnation="i", offset=5)
    for options in ({}, {"resume_after": after}, {"resume_after": after, "resync": True}):
        await take(client, 1, **options)
    asked = [r.when_lost == statesync_pb2.WATCH_LOSS_RESNAPSHOT for r in fake.replicas.requests]
    assert asked == [True, False, True]


async def test_a_cut_snapshot_tells_the_deletions_of_what_it_told_and_the_next_does_not(client, fake):
    fake.replicas.scripts = [
        [frame(snapshot_of("u", 4, 2, 1.0)), Unavailable("gone")],
        [frame(snapshot(6, 4), through=6, synced=True)],
    ]
    events = await take(client, 4)
    assert [(e.kind, e.twin_id) for e in events] == [
        ("SNAPSHOT", "u"),
        ("SNAPSHOT", "t"),
        ("DELETED", "u"),
        ("SYNCED", ""),
    ]


async def test_replicas_are_kept_only_when_asked_for(client, fake):
    with pytest.raises(FailedPrecondition, match="keep_replicas"):
        _ = client.twins.watch().replicas


def chosen(
    offset: int,
    previous_offset: int,
    kind: statesync_pb2.WatchEventKind.ValueType = statesync_pb2.WATCH_EVENT_KIND_CHANGED,
):
    told = change(offset, offset * 10)
    told.previous_offset, told.kind = previous_offset, kind
    return told


async def take_chosen(client, n: int, **options) -> list[WatchEvent]:
    events = []
    async with asyncio.timeout(5), aclosing(client.twins.watch(filter="delta:*", mask=["delta"], **options)) as changes:
        async for event in changes:
            events.append(event)
            if len(events) == n:
                break
    return events


async def test_a_watch_by_filter_says_what_it_wants_and_what_it_missed_nothing_of(client, fake):
    entered, left = statesync_pb2.WATCH_EVENT_KIND_ENTERED, statesync_pb2.WATCH_EVENT_KIND_LEFT
    fake.replicas.scripts = [
        [frame(through=5, synced=True), frame(chosen(7, 5, entered), chosen(8, 7), through=9), Unavailable("gone")],
        [frame(chosen(12, 8, left), through=12)],
    ]
    events = await take_chosen(client, 4)
    assert [(e.kind, e.offset) for e in events] == [("SYNCED", 5), ("ENTERED", 7), ("CHANGED", 8), ("LEFT", 12)]
    first, again = fake.replicas.requests
    assert (first.filter, list(first.read_mask.paths)) == (again.filter, list(again.read_mask.paths))
    assert (first.filter, list(first.read_mask.paths)) == ("delta:*", ["delta"])
    assert again.resume_after.offset == 9


@pytest.mark.parametrize(
    "frames",
    [
        [frame(chosen(7, 6), through=7)],  # one between the snapshot and this is missing
        [frame(chosen(7, 5), chosen(9, 8), through=9)],  # one within the frame
        [frame(chosen(7, 5), through=7), frame(chosen(9, 8), through=9)],  # a frame
        [frame(chosen(7, 5), chosen(7, 5), through=7)],  # a repetition
    ],
)
async def test_a_watch_by_filter_that_lacks_something_raises(client, fake, frames):
    fake.replicas.scripts = [[frame(through=5, synced=True), *frames]]
    with pytest.raises(watcher.GapDetected):
        await take_chosen(client, 10)
