"""Snapshot + events = replica, on the client's side, over random histories."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.checker import normal
from tests.unit.statesync.worlds import TENANT, bodies, grown

from twinmesh_client.replica_cache import ReplicaCache
from twinmesh_client.replicas import Position
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.rpc.mapping.replicas import change_to_message, replica_to_message, snapshot_change


@settings(max_examples=25, deadline=None)
@given(steps=bodies, cut=st.integers(1, 20))
def test_the_cache_equals_the_fold(steps: list[Any], cut: int) -> None:
    world, fold, cache = grown(steps), Fold(), ReplicaCache()
    for entry in world.entries[:cut]:
        fold.apply(entry)
    for state in fold.states(TENANT).values():
        if state.alive:
            cache.take(change_to_message(snapshot_change(TENANT, state.twin, state.replica)))
    for entry in world.entries[cut:]:
        for change in fold.apply(entry).changes:
            cache.take(change_to_message(change))
    alive = {t: s for t, s in fold.states(TENANT).items() if s.alive}
    assert {t: normal(m) for t, m in cache._replicas.items()} == {
        t: normal(replica_to_message(s.twin, s.replica)) for t, s in alive.items()
    }
    told = cache.replicas(Position(incarnation="i", offset=1))
    assert {t: r.revision for t, r in told.items()} == {t: s.replica.revision for t, s in alive.items()}
