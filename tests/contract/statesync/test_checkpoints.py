"""The checkpoint port: memory and PostgreSQL keep the same promises."""

from collections.abc import AsyncIterator

import pytest
from tests.unit.statesync.worlds import T0, TENANT, World, all_kinds, prediction

from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_statesync.adapters.memory import MemoryCheckpoints
from twinmesh_statesync.adapters.postgres import PostgresCheckpoints
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, Record, capture, digest, restore
from twinmesh_statesync.domain.entries import DeleteTwin, RecordEvent, RecordPrediction, SetDesired
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.ports import CheckpointStore


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[CheckpointStore]:
    if request.param == "memory":
        yield MemoryCheckpoints()
        return
    url = request.getfixturevalue("database_url")
    await migrate(url, "statesync", "twinmesh_statesync")
    async with open_pool(url, min_size=1, max_size=2, schema="statesync") as pool:
        yield PostgresCheckpoints(pool)


def at(offset: int, *records: Record, incarnation: str = "one") -> Checkpoint:
    return Checkpoint(position=Position(incarnation=incarnation, offset=offset), records=records)


def record(key: str, body: str | None, offset: int = 1) -> Record:
    return Record(tenant="t", kind="twin", key=key, offset=offset, body=body)


async def test_a_store_begins_empty(store: CheckpointStore) -> None:
    assert await store.load() is None


async def test_saves_add_replace_and_remove(store: CheckpointStore) -> None:
    assert await store.save(at(5, record("a", '{"n":1}'), record("b", '{"n":2}')))
    assert await store.save(at(9, record("a", '{"n":3}', 7), record("b", None), record("c", '{"x":-0.0}', 8)))
    loaded = await store.load()
    assert loaded is not None
    assert loaded.position == Position(incarnation="one", offset=9)
    assert {r.key: (r.body, r.offset) for r in loaded.records} == {"a": ('{"n":3}', 7), "c": ('{"x":-0.0}', 8)}


async def test_the_last_record_of_a_key_in_one_save_wins(store: CheckpointStore) -> None:
    await store.save(at(5, record("a", '{"n":1}'), record("a", '{"n":2}')))
    loaded = await store.load()
    assert loaded is not None
    assert [r.body for r in loaded.records] == ['{"n":2}']


async def test_an_older_position_of_the_same_log_never_replaces_a_newer_one(store: CheckpointStore) -> None:
    await store.save(at(9, record("a", '{"n":9}')))
    assert not await store.save(at(8, record("a", '{"n":8}')))
    loaded = await store.load()
    assert loaded is not None
    assert [r.body for r in loaded.records] == ['{"n":9}']
    assert await store.save(at(2, incarnation="two"))


async def test_a_complete_save_replaces_everything(store: CheckpointStore) -> None:
    await store.save(at(9, record("a", "{}"), record("b", "{}")))
    fresh = Checkpoint(position=Position(incarnation="two", offset=3), records=(record("c", '{"n":1}'),), complete=True)
    assert await store.save(fresh)
    loaded = await store.load()
    assert loaded is not None
    assert loaded.position == fresh.position
    assert [r.key for r in loaded.records] == ["c"]


async def test_a_fold_comes_back_with_the_same_digest_from_pieces(store: CheckpointStore) -> None:
    world = World("a", "b")
    position = lambda: Position(incarnation="one", offset=world.fold.offset)  # noqa: E731

    async def save() -> None:
        captured = capture(world.fold, world.fold.take_unsaved())
        await store.save(Checkpoint(position=position(), records=tuple(captured.records())))

    world.see(all_kinds("a", T0, 7))
    world.do(SetDesired(twin_id="a", values={"speed": 3.0, "stage": 1}, deadline_unix_us=T0))
    await save()
    world.do(RecordPrediction(twin_id="b", prediction=prediction()))
    world.do(
        RecordEvent(
            event=Event(event_id="e", twin_id="b", kind=EventKind.NOTE, start_time_unix_us=T0, message="\u2713")
        )
    )
    world.do(SetDesired(twin_id="a", values={"speed": 4.0}, if_revision=0))
    world.do(DeleteTwin(twin_id="b"))
    await save()
    loaded = await store.load()
    assert loaded is not None
    restored = restore(loaded)
    assert digest(restored) == digest(world.fold)
    assert restored.verdict(TENANT, "r5") is not None
