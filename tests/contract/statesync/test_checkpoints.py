"""The checkpoint port: memory and PostgreSQL keep the same promises."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.unit.statesync.worlds import T0, TENANT, World, all_kinds, prediction

from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_statesync.adapters.memory import MemoryCheckpoints
from twinmesh_statesync.adapters.postgres import PostgresCheckpoints
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, Record, capture, digest, restore
from twinmesh_statesync.domain.entries import DeleteTwin, RecordEvent, RecordPrediction, SetDesired
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.generations import Generation
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
    # What changed in one log is no change of another: it has to be begun anew.
    assert not await store.save(at(12, incarnation="two"))
    assert await store.save(replace(at(2, incarnation="two"), complete=True))


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


def generation(offset: int) -> Generation:
    return Generation(offset=offset, commit_time_unix_us=offset * 1_000)


async def save(store: CheckpointStore, offset: int, *records: Record, made: bool = False) -> None:
    generations = (generation(offset),) if made else ()
    await store.save(replace(at(offset, *records), generations=generations))


async def bodies_at(store: CheckpointStore, offset: int, *twin_ids: str) -> tuple[int, dict[str, str | None]]:
    found = await store.load_at(offset, "t", twin_ids)
    assert found is not None
    return found.position.offset, {f"{r.kind} {r.key}": r.body for r in found.records}


async def with_generations(store: CheckpointStore) -> None:
    """Four saves, of which the first, the third and the last are generations; twin c comes, b goes."""
    await store.save(replace(at(1, record("a", "1"), record("b", "1")), complete=True, generations=(generation(1),)))
    await save(store, 2, record("a", "2"))
    await save(store, 3, record("a", "3"), record("c", "3"), made=True)
    await save(store, 4, record("a", "4"), record("b", None))
    event = Record(tenant="t", kind="event", key="a/e", offset=5, body="5")
    kind = Record(tenant="t", kind="twin_type", key="pump@1", offset=5, body="5")
    verdict = Record(tenant="t", kind="verdict", key="r", offset=5, body="5")
    other = Record(tenant="u", kind="twin", key="a", offset=5, body="5")
    await save(store, 5, event, kind, verdict, other, made=True)


async def test_generations_are_told_and_loaded_as_they_were(store: CheckpointStore) -> None:
    await with_generations(store)
    assert await store.generations() == (generation(1), generation(3), generation(5))
    assert await store.load_at(0, "t") is None
    assert await bodies_at(store, 2) == (1, {"twin a": "1", "twin b": "1"})
    assert await bodies_at(store, 4) == (3, {"twin a": "3", "twin b": "1", "twin c": "3"})
    newest = {"twin a": "4", "twin c": "3", "event a/e": "5", "twin_type pump@1": "5"}
    assert await bodies_at(store, 99) == (5, newest)
    assert await bodies_at(store, 99, "a") == (5, {k: v for k, v in newest.items() if k != "twin c"})
    assert await bodies_at(store, 99, "c") == (5, {"twin c": "3", "twin_type pump@1": "5"})
    other = await store.load_at(99, "u")
    assert other is not None
    assert [r.key for r in other.records] == ["a"]


async def test_a_generation_that_is_forgotten_takes_only_what_it_alone_needed(store: CheckpointStore) -> None:
    await with_generations(store)
    await store.forget([3])
    assert await store.generations() == (generation(1), generation(5))
    assert await bodies_at(store, 4) == (1, {"twin a": "1", "twin b": "1"})
    await store.forget([1])
    assert await store.load_at(4, "t") is None
    assert (await bodies_at(store, 5))[1]["twin a"] == "4"


async def test_the_checkpoint_is_taken_back_to_a_generation(store: CheckpointStore) -> None:
    await with_generations(store)
    back = Position(incarnation="two", offset=3)
    assert not await store.rewind(replace(back, offset=4))
    assert await store.rewind(back)
    loaded = await store.load()
    assert loaded is not None
    assert loaded.position == back
    assert {r.key: r.body for r in loaded.records} == {"a": "3", "b": "1", "c": "3"}
    assert await store.generations() == (generation(1), generation(3))
    assert await bodies_at(store, 2) == (1, {"twin a": "1", "twin b": "1"})
    # It goes on from there, and the way back stays.
    await store.save(at(6, record("b", "6"), incarnation="two"))
    assert await bodies_at(store, 9) == (3, {"twin a": "3", "twin b": "1", "twin c": "3"})


async def test_a_complete_save_begins_the_generations_anew(store: CheckpointStore) -> None:
    await with_generations(store)
    first = replace(at(7, record("z", "7")), complete=True, generations=(generation(0), generation(7)))
    await store.save(first)
    assert await store.generations() == (generation(0), generation(7))
    assert await bodies_at(store, 6) == (0, {})
    assert await bodies_at(store, 7) == (7, {"twin z": "7"})


async def test_a_save_forgets_earlier_generations_where_it_says_so(store: CheckpointStore) -> None:
    """What an erasure emptied must not be found again by going back."""
    await with_generations(store)
    await store.save(replace(at(6, record("a", "6")), generations=(generation(6),), forget_before=5))
    assert await store.generations() == (generation(5), generation(6))
    assert await store.load_at(4, "t") is None
    assert (await bodies_at(store, 5))[1]["twin a"] == "4"
    await store.save(replace(at(7, record("a", "7")), forget_before=7))
    assert await store.generations() == ()
    assert await store.load_at(9, "t") is None
