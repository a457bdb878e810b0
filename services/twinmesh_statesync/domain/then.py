"""All living twins of a tenant at one point of the past, put together once: what a filter is judged on there."""

from __future__ import annotations

from collections.abc import Iterable

from twinmesh_statesync.domain.filter import Expression, compiled
from twinmesh_statesync.domain.version import TwinVersion


class Then:
    """A population that does not move; see `twinmesh_statesync.domain.version.Population`.

    Args:
        versions: every twin that lived then.
    """

    def __init__(self, versions: Iterable[TwinVersion]) -> None:
        self.memo: dict[tuple[int, str], bool] = {}
        self._versions = {version.twin.twin_id: version for version in versions}
        self._pointing: dict[tuple[str, str], list[TwinVersion]] | None = None

    def version(self, twin_id: str) -> TwinVersion | None:
        """Return a twin, or None if it did not live."""
        return self._versions.get(twin_id)

    def sources(self, relation: str, twin_id: str) -> Iterable[TwinVersion]:
        """Return the twins that had an edge of this name to `twin_id`."""
        if self._pointing is None:
            self._pointing = {}
            for version in self._versions.values():
                for edge in version.twin.relationships:
                    self._pointing.setdefault((edge.name, edge.target_twin_id), []).append(version)
        return self._pointing.get((relation, twin_id), ())

    def matching(self, expression: Expression) -> list[TwinVersion]:
        """Return the twins that match, in no order."""
        test = compiled(expression)
        return [version for version in self._versions.values() if test(version, self)]
