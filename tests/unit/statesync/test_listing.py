"""Lists of twins: all pages are one snapshot, however the world goes on; else the token has expired, and says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.populations import matches
from tests.unit.statesync.test_watch import Stage, staged
from tests.unit.statesync.worlds import FILTERS, HOPPING, T0, TENANT, S, World, bodies, grown

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, OutOfRange
from twinmesh_core.time import SystemClock
from twinmesh_statesync.domain.catalogue import Catalogue
from twinmesh_statesync.domain.filter import parse_filter
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.mask import ALL, read_mask
from twinmesh_statesync.domain.ordering import ordered, read_order
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.rpc.listing import Listing, masked_replica
from twinmesh_statesync.rpc.reading import Reading

ListTwinsRequest = statesync_pb2.ListTwinsRequest


def listing_of(stage: Stage) -> Listing:
    return Listing(Reading(stage.live), Catalogue(stage.live, SystemClock()))


def alive(stage: Stage) -> dict[str, TwinVersion]:
    states = stage.live.fold.states(TENANT).items()
    return {twin_id: state.version for twin_id, state in states if state.version is not None}


@settings(max_examples=60, deadline=None)
@given(
    steps=bodies,
    cut=st.integers(3, 30),
    text=st.sampled_from([*FILTERS, *HOPPING]),
    kept=st.booleans(),
    order=st.sampled_from(["", "reported.temperature desc", "attributes.site, revision desc"]),
)
def test_all_pages_are_the_twins_of_one_offset(steps: list[Any], cut: int, text: str, kept: bool, order: str) -> None:
    world = grown(steps)

    async def scene() -> None:
        async with staged(world.entries[:cut]) as stage:
            listing, token = listing_of(stage), ""
            told: list[statesync_pb2.TwinSummary] = []
            before = alive(stage)
            expected = [v for v in before.values() if matches(parse_filter(text), v, before)]
            pinned = stage.live.fold.offset
            for entry in [None, *world.entries[cut:]]:
                if entry is not None:
                    await stage.grow(entry)
                request = ListTwinsRequest(
                    filter=text, page_size=1, page_token=token, include_replica=True, order_by=order
                )
                answer = await listing.list(TENANT, request)
                assert answer.as_of.offset == pinned
                told += answer.twins
                token = answer.next_page_token
                if not kept:
                    listing._kept.clear()
                if not token:
                    break
            whole = [masked_replica(version) for version in ordered(expected, read_order(order))]
            assert [summary.replica for summary in told] == (whole if not token else whole[: len(told)])
            assert [s.delta_count for s in told] == [len(r.delta.items) for r in whole[: len(told)]]
            counted = await listing.count(TENANT, statesync_pb2.CountTwinsRequest(filter=text))
            now = alive(stage)
            assert counted.count == sum(matches(parse_filter(text), v, now) for v in now.values())

    asyncio.run(scene())


async def test_a_page_whose_offset_is_no_longer_kept_has_expired() -> None:
    world = World("a", "b")
    async with staged(world.entries, ring_changes=1_000) as stage:
        listing = listing_of(stage)
        first = await listing.list(TENANT, ListTwinsRequest(page_size=1))
        for i in range(3_000):
            world.report("a", "temperature", T0 + i * S, float(i))
        await stage.grow(*world.entries[3:])
        again = ListTwinsRequest(page_size=1, page_token=first.next_page_token)
        assert [s.twin.twin_id for s in (await listing.list(TENANT, again)).twins] == ["b"]
        listing._kept.clear()
        with pytest.raises(OutOfRange) as caught:
            await listing.list(TENANT, again)
        assert caught.value.reason == "PAGE_EXPIRED"


async def test_a_token_of_another_list_or_another_log_is_refused() -> None:
    async with staged(World("a", "b").entries) as stage:
        listing = listing_of(stage)
        token = (await listing.list(TENANT, ListTwinsRequest(page_size=1))).next_page_token
        for other in (
            ListTwinsRequest(page_size=1, page_token=token, filter="delta:*"),
            ListTwinsRequest(page_size=1, page_token=token, order_by="revision"),
            ListTwinsRequest(page_size=1, page_token="bm90IG91cnM="),
            ListTwinsRequest(page_size=1, page_token="WzEsIFtdLCAtMSwgMV0="),
        ):
            with pytest.raises(InvalidArgument, match="page_token"):
                await listing.list(TENANT, other)
        with pytest.raises(InvalidArgument, match="page_token"):
            await listing.list("another", ListTwinsRequest(page_size=1, page_token=token))
        stage.log.rewind(2)
        async with asyncio.timeout(5):
            while stage.live.fold.offset != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises((FailedPrecondition, OutOfRange)):
            await listing.list(TENANT, ListTwinsRequest(page_size=1, page_token=token))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ListTwinsRequest(filter="delta"), "filter"),
        (ListTwinsRequest(order_by="nothing"), "order_by"),
        (ListTwinsRequest(order_by="revision down"), "order_by"),
        (ListTwinsRequest(order_by="delta"), "order_by"),
        (ListTwinsRequest(order_by="revision,revision,revision,revision,revision"), "order_by"),
        (ListTwinsRequest(read_mask=FieldMask(paths=["reported"])), "read_mask"),
        (ListTwinsRequest(read_mask=FieldMask(paths=["repored"]), include_replica=True), "read_mask.paths[0]"),
        (ListTwinsRequest(read_mask=FieldMask(paths=["twin.x"]), include_replica=True), "read_mask.paths[0]"),
        (ListTwinsRequest(page_size=1_001), "page_size"),
    ],
)
async def test_a_wrong_request_names_its_field(request_: ListTwinsRequest, field: str) -> None:
    async with staged(World("a").entries) as stage:
        with pytest.raises(InvalidArgument) as caught:
            await listing_of(stage).list(TENANT, request_)
        assert caught.value.field_violations[0].field == field


async def test_a_mask_leaves_out_what_is_not_wanted_and_keeps_ids_and_revisions() -> None:
    world = World("a")
    world.report("a", "temperature", T0, 1.0)
    world.report("a", "speed", T0, 2.0)
    async with staged(world.entries) as stage:
        whole = masked_replica(alive(stage)["a"], ALL)
        cut = masked_replica(alive(stage)["a"], read_mask(["reported.speed", "delta"], "read_mask"))
        assert [value.channel for value in cut.reported.values] == ["speed"]
        assert (cut.twin.twin_id, cut.twin.twin_type_id, cut.twin.create_offset) == ("a", "pump", 0)
        assert (cut.revision, cut.offset, cut.reported.revision) == (whole.revision, whole.offset, 2)


@settings(max_examples=40, deadline=None)
@given(steps=bodies)
def test_every_change_joins_the_twin_before_to_the_twin_after(steps: list[Any]) -> None:
    last: dict[str, TwinVersion | None] = {}
    fold = Fold()
    for entry in grown(steps).entries:
        for change in fold.apply(entry).changes:
            twin_id = change.twin.twin_id
            assert change.before is last.get(twin_id)
            last[twin_id] = change.after
            state = fold.state(TENANT, twin_id)
            assert state is not None
            assert state.version is change.after
            if change.after is not None:
                assert (change.after.twin, change.after.replica) == (state.twin, state.replica)
                assert change.after.twin_type is state.twin_type
