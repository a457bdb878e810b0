"""Replicas as they were: at any offset exactly, at any event time as far as it was known."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.checker import normal
from tests.unit.statesync.populations import filters, matches, populations
from tests.unit.statesync.test_replay import linked, saved_at
from tests.unit.statesync.test_watch import Stage
from tests.unit.statesync.worlds import T0, TENANT, S, World, bodies, grown, prediction

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange, TwinmeshError
from twinmesh_statesync.domain.entries import DeleteTwin, RecordPrediction, SetDesired
from twinmesh_statesync.domain.filter import Expression
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.past import Past
from twinmesh_statesync.domain.then import Then
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message
from twinmesh_statesync.rpc.past import PastReads
from twinmesh_statesync.rpc.past_lists import PastLists
from twinmesh_statesync.rpc.reading import Reading


@asynccontextmanager
async def reads(world: World, saves: set[int]) -> AsyncIterator[tuple[Stage, PastReads]]:
    async with saved_at(world, saves) as stage:
        store = stage.replays._store
        yield stage, PastReads(Reading(stage.live), Past(live=stage.live, log=stage.log, store=store))


@asynccontextmanager
async def lists(world: World, saves: set[int]) -> AsyncIterator[tuple[Stage, "Lists"]]:
    async with reads(world, saves) as (stage, past):
        yield stage, Lists(past, PastLists(Reading(stage.live), past))


@dataclass
class Lists:
    """Lists of the past, as the servicer asks for them."""

    past: PastReads
    lists: PastLists

    async def page(self, request: statesync_pb2.ListTwinsRequest) -> statesync_pb2.ListTwinsResponse:
        asked = await self.past.asked(request)
        assert asked is not None
        return await self.lists.list(TENANT, request, asked)


async def get(past: PastReads, twin: str, **request: Any) -> Any:
    asked = await past.asked(statesync_pb2.GetReplicaRequest(twin_id=twin, **request))
    assert asked is not None
    found, replica = await past.replica(TENANT, twin, asked)
    return replica_to_message(found, replica)


def fold_at(world: World, offset: int) -> Fold:
    fold = Fold()
    for entry in world.entries[:offset]:
        fold.apply(entry)
    return fold


@settings(max_examples=15, deadline=None)
@given(steps=bodies, saves=st.sets(st.integers(1, 40), max_size=3), offset=st.integers(1, 43))
def test_a_replica_at_an_offset_is_exactly_what_it_was(steps: list[Any], saves: set[int], offset: int) -> None:
    world = grown(steps)
    offset = min(offset, len(world.entries))
    then = fold_at(world, offset)

    async def scene() -> None:
        async with reads(world, saves) as (_, past):
            for twin_id in "abc":
                state = then.state(TENANT, twin_id)
                if state is not None and state.alive:
                    expected = normal(replica_to_message(state.twin, state.replica))
                    assert normal(await get(past, twin_id, at_offset=offset)) == expected
                else:
                    with pytest.raises(NotFound):
                        await get(past, twin_id, at_offset=offset)
            asked = await past.asked(statesync_pb2.ListTwinsRequest(at_offset=offset))
            assert asked is not None
            listed = (await past.fold(TENANT, asked)).states(TENANT)
            alive = {t: s.replica for t, s in then.states(TENANT).items() if s.alive}
            assert {t: s.replica for t, s in listed.items() if s.alive} == alive

    asyncio.run(scene())


async def test_a_twin_that_cannot_be_folded_without_another_is_found_as_it_was() -> None:
    world = linked()
    async with reads(world, {3}) as (_, past):
        # As of before its last change, so that the past has to be folded.
        replica = await get(past, "z", at_offset=len(world.entries) - 1)
        assert (replica.revision, len(replica.reported.values)) == (1, 0)


def plant() -> World:
    """A day in short: reports, a target that is met late, a prediction, a correction that arrives late."""
    world = World("a")
    world.report("a", "target", T0 + 1 * S, 1.0)
    world.do(SetDesired(twin_id="a", values={"target": 2.0}))  # offset 4
    world.report("a", "target", T0 + 2 * S, 1.5)
    world.do(RecordPrediction(twin_id="a", prediction=prediction()))
    world.report("a", "target", T0 + 3 * S, 2.0)  # offset 7: in sync
    world.report("a", "temperature", T0 + 2 * S, 20.0)  # offset 8: comes late
    return world


def at(time_unix_us: int) -> dict[str, Any]:
    return {"at_event_time": {"seconds": time_unix_us // S, "nanos": time_unix_us % S * 1_000}}


def facts(replica: Any) -> dict[str, float]:
    return {value.channel: value.value.double_value for value in replica.reported.values}


async def test_at_an_event_time_the_facts_are_those_of_then_as_known_now_or_at_an_offset() -> None:
    async with reads(plant(), {5}) as (_, past):
        assert facts(await get(past, "a", **at(T0 + 1 * S))) == {"target": 1.0}
        assert facts(await get(past, "a", **at(T0 + 2 * S))) == {"target": 1.5, "temperature": 20.0}
        # As known before the late one came:
        assert facts(await get(past, "a", **at(T0 + 2 * S), at_offset=7)) == {"target": 1.5}
        assert facts(await get(past, "a", **at(T0))) == {}


async def test_at_an_event_time_all_else_is_what_was_committed_by_then() -> None:
    # Facts from the future of their commit times, so that event times and commit times can be told apart.
    world = plant()
    committed = [entry.commit_time_unix_us for entry in world.entries]
    async with reads(world, {5}) as (_, past):
        before = await get(past, "a", **at(committed[2]))  # before the target was set
        assert (len(before.desired.values), len(before.predicted.predictions)) == (0, 0)
        between = await get(past, "a", **at(committed[3]))
        assert [value.value.double_value for value in between.desired.values] == [2.0]
        assert between.desired.revision == 1
        assert [item.channel for item in between.delta.items] == ["target"]
        assert len(between.predicted.predictions) == 0
        now = await get(past, "a", **at(T0 + 60 * S))
        assert len(now.predicted.predictions) == 1
        assert len(now.delta.items) == 0


async def test_facts_older_than_the_twin_are_told_with_nothing_else() -> None:
    world = World("a")
    world.do(SetDesired(twin_id="a", values={"target": 2.0}))
    world.report("a", "target", T0 - 86_400 * S, 1.0)
    async with reads(world, set()) as (_, past):
        told = await get(past, "a", **at(T0 - 3_600 * S))
        assert facts(told) == {"target": 1.0}
        assert (told.revision, len(told.desired.values), len(told.delta.items)) == (0, 0, 0)


@settings(max_examples=300)
@given(twins=populations, expression=filters())
def test_a_filter_means_in_the_past_what_it_means_now(twins: dict[str, TwinVersion], expression: Expression) -> None:
    found = {version.twin.twin_id for version in Then(twins.values()).matching(expression)}
    assert found == {twin_id for twin_id, version in twins.items() if matches(expression, version, twins)}


def fleet() -> World:
    """Three twins that heat up one after another; "a" cools down in the end, and "c" is deleted."""
    world = World("a", "b", "c")
    for number, twin_id in enumerate("abc"):
        world.report(twin_id, "temperature", T0 + (number + 1) * S, 90.0 - number)
    world.report("a", "temperature", T0 + 9 * S, 20.0)
    world.do(DeleteTwin(twin_id="c"))
    return world


async def listed(lists: Lists, **request: Any) -> list[str]:
    """Return the twins of all pages, "id", or with replicas "id=temperature"; all pages name one position."""
    asking, told, positions = statesync_pb2.ListTwinsRequest(page_size=1, **request), [], set()
    while True:
        page = await lists.page(asking)
        positions.add(page.as_of.offset)
        for one in page.twins:
            values = "".join(f"={v.value.double_value:g}" for v in one.replica.reported.values)
            told.append(f"{one.twin.twin_id}{values}")
        asking.page_token = page.next_page_token
        if not asking.page_token:
            assert len(positions) == 1
            return told


async def test_twins_of_the_past_are_filtered_and_ordered_as_they_were() -> None:
    world = fleet()
    hot = "reported.temperature > 80"
    async with lists(world, {5}) as (_, past):
        end = len(world.entries)
        assert await listed(past, at_offset=end, filter=hot) == ["b"]
        before = end - 2  # before "a" cooled down
        assert await listed(past, at_offset=before, filter=hot) == ["a", "b", "c"]
        assert await listed(past, at_offset=before, include_replica=True) == ["a=90", "b=89", "c=88"]
        assert await listed(past, at_offset=before, twin_type_id="pump") == ["a", "b", "c"]
        ordering = {"order_by": "reported.temperature", "include_replica": True}
        assert await listed(past, at_offset=before, filter=hot, **ordering) == ["c=88", "b=89", "a=90"]
        assert await listed(past, at_offset=before, filter='twin_id = "b" OR reported.temperature < 30') == ["b"]
        # By event time: what is measured later is not seen, though it was committed long ago.
        assert await listed(past, filter=hot, **at(T0 + 2 * S)) == ["a", "b"]
        assert await listed(past, include_replica=True, **at(T0 + 2 * S)) == ["a=90", "b=89"]
        assert await listed(past, include_replica=True, **at(T0 + 9 * S)) == ["a=20", "b=89"]
        wrong: tuple[tuple[dict[str, Any], str], ...] = (
            ({"filter": "reported.temperature >"}, "filter"),
            ({"order_by": "nonsense"}, "order_by"),
            ({"read_mask": {"paths": ["delta"]}}, "read_mask"),
            ({"page_token": "nonsense"}, "page_token"),
        )
        for request, field in wrong:
            with pytest.raises(InvalidArgument) as caught:
                await listed(past, at_offset=end, **request)
            assert caught.value.field_violations[0].field == field


@pytest.mark.parametrize("chosen", [{}, {"order_by": "twin_id"}, {"filter": "reported.temperature < 1000"}])
async def test_a_page_goes_on_where_the_last_one_ended_whatever_happened_since(chosen: dict[str, Any]) -> None:
    world = fleet()
    async with lists(world, {5}) as (stage, past):
        for when in (at(T0 + 60 * S), {"at_offset": len(world.entries)}):
            asking = statesync_pb2.ListTwinsRequest(page_size=1, include_replica=True, **chosen, **when)
            first = await past.page(asking)
            # As of now, and a fact and a deletion come while it is answered.
            world.report("b", "temperature", T0 + 10 * S, 77.0)
            growing = asyncio.create_task(stage.grow(world.entries[-1]))
            again = await past.page(asking)
            await growing
            assert again == first
            asking.page_token = first.next_page_token
            second = await past.page(asking)
            assert [t.twin.twin_id for t in (*first.twins, *second.twins)] == ["a", "b"]
            assert second.twins[0].replica.reported.values[0].value.double_value == 89.0
            assert second.as_of == first.as_of
            world.report("b", "temperature", T0 + 1 * S, 89.0)
            await stage.grow(world.entries[-1])


async def test_tokens_are_checked() -> None:
    world = fleet()
    async with lists(world, {5}) as (_, past):
        end = len(world.entries)
        asking = statesync_pb2.ListTwinsRequest(page_size=1, order_by="twin_id", at_offset=end)
        token = (await past.page(asking)).next_page_token
        incarnation, offset, fingerprint, skip, last = json.loads(base64.urlsafe_b64decode(token))

        async def refused(kind: type[TwinmeshError], *parts: Any, **request: Any) -> TwinmeshError:
            text = base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()
            whole: dict[str, Any] = {"page_size": 1, "order_by": "twin_id", "at_offset": end, "page_token": text}
            changed = statesync_pb2.ListTwinsRequest(**whole | request)
            with pytest.raises(kind) as caught:
                await past.page(changed)
            return caught.value

        known = (incarnation, offset, fingerprint, skip, last)
        await refused(InvalidArgument, *known, order_by="twin_id desc")
        await refused(InvalidArgument, *known, at_offset=end - 1)
        # Nothing is waited for that has not happened.
        moment = {"at_offset": 0} | at(T0 + 60 * S)
        asking = statesync_pb2.ListTwinsRequest(page_size=1, order_by="twin_id", **moment)
        of_moment = json.loads(base64.urlsafe_b64decode((await past.page(asking)).next_page_token))[2]
        beyond = await refused(OutOfRange, incarnation, 1_000, of_moment, skip, last, **moment)
        assert beyond.reason == "FUTURE_OFFSET"
        assert (await refused(FailedPrecondition, "other", offset, fingerprint, skip, last)).reason == "LOG_REWOUND"
        assert (await refused(OutOfRange, incarnation, offset, fingerprint, skip, "b")).reason == "PAGE_EXPIRED"
        assert (await refused(OutOfRange, incarnation, offset, fingerprint, 99, last)).reason == "PAGE_EXPIRED"


async def refusal(past: PastReads, twin: str, **request: Any) -> TwinmeshError:
    with pytest.raises(TwinmeshError) as caught:
        await get(past, twin, **request)
    return caught.value


async def test_what_cannot_be_told_is_refused_by_name() -> None:
    world = plant()
    world.do(DeleteTwin(twin_id="a"))
    async with reads(world, {5}) as (stage, past):
        end = len(world.entries)
        assert (await refusal(past, "a", at_offset=1)).reason == "TWIN_NOT_FOUND"
        assert (await refusal(past, "a", at_offset=end)).reason == "TWIN_NOT_FOUND"
        assert (await refusal(past, "ghost", at_offset=3)).reason == "TWIN_NOT_FOUND"
        assert isinstance(await refusal(past, "a", at_offset=-1), InvalidArgument)
        future = await refusal(past, "a", at_offset=1_000)
        assert (type(future), future.reason) == (OutOfRange, "FUTURE_OFFSET")
        other = await refusal(past, "a", at_offset=3, incarnation="another")
        assert (type(other), other.reason) == (FailedPrecondition, "LOG_REWOUND")
        kept = await stage.replays._store.generations()
        await stage.replays._store.forget({g.offset for g in kept} - {5})
        stage.live._keeper.generations = tuple(g for g in kept if g.offset == 5)
        old = await refusal(past, "a", at_offset=4)
        assert (type(old), old.reason, old.metadata["compacted_to"]) == (OutOfRange, "COMPACTED", "5")
        assert facts(await get(past, "a", at_offset=6)) == {"target": 1.5}
