"""The living twins of one tenant by what filters ask for: kept up with every change, rebuilt from nothing."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final, TypeVar

from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.filter.lineage import lineage
from twinmesh_statesync.domain.version import TwinVersion

KeyT = TypeVar("KeyT")
_Held = dict[KeyT, str | set[str]]
"""Twin ids by key. Most keys (a serial number, an edge) hold one twin, and a set for each would be most of an index."""
_NONE: Final[frozenset[str]] = frozenset()


class TwinIndex:
    """Sets of twin ids; see `twinmesh_statesync.domain.filter.planning.Index`."""

    def __init__(self) -> None:
        self._alive: dict[str, TwinVersion] = {}
        self._types: _Held[str] = {}
        self._attributes: _Held[tuple[str, str]] = {}
        self._connectivity: _Held[Connectivity] = {}
        self._pointing: _Held[tuple[str, str]] = {}
        self._delta: set[str] = set()

    def move(self, twin_id: str, before: TwinVersion | None, after: TwinVersion | None) -> None:
        """Take one change of one twin; of one that is not here yet, too."""
        if twin_id not in self._alive:
            if after is not None:
                self._put_in(twin_id, after)
        elif (
            before is None or after is None or before.twin is not after.twin or before.twin_type is not after.twin_type
        ):
            if before is not None:
                self._take_out(twin_id, before)
            if after is not None:
                self._put_in(twin_id, after)
        else:
            self._alive[twin_id] = after
            self._move_state(twin_id, before, after)

    def _move_state(self, twin_id: str, before: TwinVersion, after: TwinVersion) -> None:
        old, new = before.replica, after.replica
        if old.connectivity is not new.connectivity:
            _discard(self._connectivity, old.connectivity, twin_id)
            _add(self._connectivity, new.connectivity, twin_id)
        if old.delta is not new.delta:
            (self._delta.add if new.delta else self._delta.discard)(twin_id)

    def _put_in(self, twin_id: str, version: TwinVersion) -> None:
        self._alive[twin_id] = version
        for name in lineage(version.twin_type):
            _add(self._types, name, twin_id)
        for pair in version.twin.attributes.items():
            _add(self._attributes, pair, twin_id)
        for edge in version.twin.relationships:
            _add(self._pointing, (edge.name, edge.target_twin_id), twin_id)
        _add(self._connectivity, version.replica.connectivity, twin_id)
        if version.replica.delta:
            self._delta.add(twin_id)

    def _take_out(self, twin_id: str, version: TwinVersion) -> None:
        self._alive.pop(twin_id, None)
        for name in lineage(version.twin_type):
            _discard(self._types, name, twin_id)
        for pair in version.twin.attributes.items():
            _discard(self._attributes, pair, twin_id)
        for edge in version.twin.relationships:
            _discard(self._pointing, (edge.name, edge.target_twin_id), twin_id)
        _discard(self._connectivity, version.replica.connectivity, twin_id)
        self._delta.discard(twin_id)

    def __contains__(self, twin_id: str) -> bool:
        return twin_id in self._alive

    def version(self, twin_id: str) -> TwinVersion | None:
        """Return a living twin as it is now."""
        return self._alive.get(twin_id)

    def twin_ids(self) -> Iterator[str]:
        """Return the ids of all living twins."""
        return iter(self._alive)

    def __len__(self) -> int:
        return len(self._alive)

    def with_id(self, twin_id: str) -> Set[str]:
        """Return the twin of this id, if it lives."""
        return frozenset({twin_id}) if twin_id in self._alive else _NONE

    def of_type(self, twin_type_id: str) -> Set[str]:
        """Return the twins whose type is (one of) this type."""
        return _held(self._types, twin_type_id)

    def with_attribute(self, key: str, text: str) -> Set[str]:
        """Return the twins with this attribute."""
        return _held(self._attributes, (key, text))

    def with_connectivity(self, connectivity: Connectivity) -> Set[str]:
        """Return the twins heard from in this way."""
        return _held(self._connectivity, connectivity)

    def with_delta(self) -> Set[str]:
        """Return the twins with open targets."""
        return self._delta

    def pointing_to(self, relation: str, twin_id: str) -> Set[str]:
        """Return the twins with an edge of this name to `twin_id`."""
        return _held(self._pointing, (relation, twin_id))

    def pointed_to_by(self, relation: str, twin_id: str) -> Set[str]:
        """Return the twins to which `twin_id` has an edge of this name, living or not."""
        version = self._alive.get(twin_id)
        if version is None:
            return _NONE
        return {edge.target_twin_id for edge in version.twin.relationships if edge.name == relation}


def _held(held: _Held[KeyT], key: KeyT) -> Set[str]:
    found = held.get(key, _NONE)
    return frozenset({found}) if isinstance(found, str) else found


def _add(held: _Held[KeyT], key: KeyT, twin_id: str) -> None:
    found = held.get(key)
    if found is None or found == twin_id:
        held[key] = twin_id
    elif isinstance(found, str):
        held[key] = {found, twin_id}
    else:
        found.add(twin_id)


def _discard(held: _Held[KeyT], key: KeyT, twin_id: str) -> None:
    found = held.get(key)
    if isinstance(found, set):
        found.discard(twin_id)
        if len(found) == 1:
            held[key] = found.pop()
    elif found == twin_id:
        del held[key]
