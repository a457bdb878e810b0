"""The registry of a log: which twin types and twins exist at an offset, decided by the entries alone.

State-sync and ingestion both fold the same control entries with this class, so they agree without talking. The fold is
pure: no clock, no input but entries in the order of their offsets; it can stop anywhere, be snapshotted, and go on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from twinmesh_core.edges import check_edges
from twinmesh_core.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    Reason,
    TwinmeshError,
)
from twinmesh_core.ids import quoted
from twinmesh_core.migration import MigrationOutcome, MigrationPlan, UnitChanges, plan_migration
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_core.registry_rules import check_twin, remedy_for_unknown_twin
from twinmesh_core.registry_verdict import Outcome, Verdict
from twinmesh_core.twin_updates import updated
from twinmesh_core.twin_values import valued
from twinmesh_core.type_registry import TypeRegistry

__all__ = ["Outcome", "RegistryFold", "RegistrySnapshot", "Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySnapshot:
    """Everything a `RegistryFold` holds at one offset, tenant first, in order of ids."""

    offset: int = 0
    twin_types: tuple[tuple[str, TwinType], ...] = ()
    twins: tuple[tuple[str, Twin], ...] = ()


_EMPTY: Final = RegistrySnapshot()


class RegistryFold(TypeRegistry):
    """Twin types and twins of all tenants as of `offset`; not safe for use from several threads.

    Args:
        snapshot: where to go on from; the default is the empty log.
    """

    def __init__(self, snapshot: RegistrySnapshot = _EMPTY) -> None:
        super().__init__(snapshot.offset)
        self._twins: dict[tuple[str, str], Twin] = {}
        # In the order of their creation: a type comes after the one it extends.
        for tenant, twin_type in sorted(snapshot.twin_types, key=lambda t: t[1].create_offset):
            self._put_type(tenant, twin_type, self._resolved(tenant, twin_type))
        for tenant, twin in snapshot.twins:
            self._twins[tenant, twin.twin_id] = twin

    def snapshot(self) -> RegistrySnapshot:
        """Return everything, types as they were written, as values that later entries do not change."""
        return RegistrySnapshot(
            offset=self._offset,
            twin_types=self.declared_types(),
            twins=tuple((tenant, twin) for (tenant, _), twin in sorted(self._twins.items())),
        )

    def create_twin(
        self, tenant: str, offset: int, twin: Twin, *, if_absent: bool = False, commit_time_unix_us: int = 0
    ) -> Verdict:
        """Decide the creation of a twin; version 0 becomes the newest version of its type at this offset."""
        verdicts = self.create_twins(
            tenant, offset, (twin,), if_absent=if_absent, commit_time_unix_us=commit_time_unix_us
        )
        return verdicts[0]

    def create_twins(
        self,
        tenant: str,
        offset: int,
        twins: Sequence[Twin],
        *,
        if_absent: bool = False,
        all_or_nothing: bool = False,
        commit_time_unix_us: int = 0,
    ) -> list[Verdict]:
        """Decide the creation of many twins at one offset; one of them may be the target of another's relationship.

        With `all_or_nothing` and one refused, the others come back REJECTED without an error.
        """
        self.advance(offset)
        verdicts: list[Verdict] = []
        fresh: dict[str, tuple[int, Twin]] = {}
        for i, twin in enumerate(twins):
            verdict = self._creation(tenant, offset, twin, fresh, if_absent, commit_time_unix_us)
            if verdict.outcome is Outcome.ACCEPTED and verdict.twin is not None:
                fresh[twin.twin_id] = (i, verdict.twin)
            verdicts.append(verdict)
        self._drop_unconnected(tenant, fresh, verdicts)
        if all_or_nothing and any(verdict.outcome is Outcome.REJECTED for verdict in verdicts):
            left_out = Verdict(outcome=Outcome.REJECTED)
            return [v if v.outcome is Outcome.REJECTED else left_out for v in verdicts]
        for _, twin in fresh.values():
            self._twins[tenant, twin.twin_id] = twin
        return verdicts

    def update_twin(
        self, tenant: str, offset: int, twin: Twin, paths: Sequence[str], *, if_revision: int | None = None
    ) -> Verdict:
        """Decide a change of what a twin is: the values of `twin` at `paths`, on condition of its revision."""
        self.advance(offset)
        try:
            current = self.require_twin(tenant, twin.twin_id)
            revision = current.revision or current.create_offset
            if if_revision is not None and if_revision != revision:
                raise _revision_differs(current.twin_id, revision, if_revision)
            twin_type = self.type_of(tenant, current)
            wanted = updated(current, twin, paths, twin_type)
            check_twin(wanted)
            wanted = valued(wanted, twin_type)
            check_edges(wanted, twin_type, self._type_by_id(tenant), known=current.relationships)
        except TwinmeshError as error:
            return Verdict(outcome=Outcome.REJECTED, error=error)
        if wanted == current:
            return Verdict(outcome=Outcome.NO_OP, twin=current)
        changed = self._twins[tenant, twin.twin_id] = replace(wanted, revision=offset)
        return Verdict(outcome=Outcome.ACCEPTED, twin=changed)

    def migrate_twins(
        self, tenant: str, offset: int, twin_ids: Sequence[str], target: TwinType, from_version: int, units: UnitChanges
    ) -> list[MigrationPlan]:
        """Bring twins to another version of their type, each decided by itself and as of before the entry."""
        self.advance(offset)
        plans = self.plan_migrations(tenant, twin_ids, target, from_version, units)
        for plan in plans:
            if plan.outcome is MigrationOutcome.MIGRATED and plan.twin is not None:
                self._twins[tenant, plan.twin_id] = replace(plan.twin, revision=offset)
        return plans

    def plan_migrations(
        self, tenant: str, twin_ids: Sequence[str], target: TwinType, from_version: int, units: UnitChanges
    ) -> list[MigrationPlan]:
        """Return what `migrate_twins` would do now."""
        plans = []
        for twin_id in dict.fromkeys(twin_ids):
            twin = self._twins.get((tenant, twin_id))
            elsewhere = twin is None or twin.twin_type_id != target.twin_type_id
            if twin is None or elsewhere or from_version not in (0, twin.twin_type_version, target.version):
                plans.append(MigrationPlan(twin_id=twin_id, from_version=0, outcome=MigrationOutcome.NOT_FOUND))
            else:
                before = self.type_of(tenant, twin)
                plans.append(plan_migration(twin, before, target, units, self._type_by_id(tenant)))
        return plans

    def ids_to_migrate(self, tenant: str, target: TwinType, from_version: int, after: str, limit: int) -> list[str]:
        """Return at most `limit` ids of twins of the type and of another version, in order, after `after`."""
        versions = {from_version} if from_version else None
        return heapq.nsmallest(
            limit,
            (
                twin_id
                for (owner, twin_id), twin in self._twins.items()
                if owner == tenant
                and twin.twin_type_id == target.twin_type_id
                and twin.twin_type_version != target.version
                and twin_id > after
                and (versions is None or twin.twin_type_version in versions)
            ),
        )

    def delete_twin(self, tenant: str, offset: int, twin_id: str) -> Verdict:
        """Decide the deletion of a twin; its history stays, and the id may begin another life of the same entity."""
        self.advance(offset)
        deleted = self._twins.pop((tenant, twin_id), None)
        if deleted is None:
            return Verdict(outcome=Outcome.REJECTED, error=self._twin_not_found(tenant, twin_id))
        return Verdict(outcome=Outcome.ACCEPTED, twin=deleted)

    def twin(self, tenant: str, twin_id: str) -> Twin | None:
        """Return the living twin of this id, or None."""
        return self._twins.get((tenant, twin_id))

    def type_of(self, tenant: str, twin: Twin) -> TwinType:
        """Return the type of a twin of this registry: it always exists."""
        return self._types[tenant, twin.twin_type_id][twin.twin_type_version]

    def twins(self, tenant: str) -> Iterator[Twin]:
        """Yield the living twins of a tenant in order of ids."""
        for key in sorted(key for key in self._twins if key[0] == tenant):
            yield self._twins[key]

    def require_twin(self, tenant: str, twin_id: str) -> Twin:
        """Return the living twin of this id.

        Raises:
            NotFound: TWIN_NOT_FOUND, with the command that creates it.
        """
        found = self._twins.get((tenant, twin_id))
        if found is None:
            raise self._twin_not_found(tenant, twin_id)
        return found

    def require_channel(self, tenant: str, twin_id: str, channel: str) -> ChannelSpec:
        """Return a channel of a living twin.

        Raises:
            NotFound: TWIN_NOT_FOUND, or CHANNEL_NOT_FOUND naming the channels that the twin has.
        """
        twin_type = self.type_of(tenant, self.require_twin(tenant, twin_id))
        found = twin_type.channel(channel)
        if found is None:
            names = twin_type.channel_names()
            raise NotFound(
                f"twin {quoted(twin_id)} has no channel {quoted(channel)}; it has: {names}",
                reason=Reason.CHANNEL_NOT_FOUND,
                metadata={"channels": names},
            )
        return found

    def remedy(self, tenant: str, twin_id: str) -> str:
        """Return the command that creates this twin, with the tenant's only type filled in where there is one."""
        newest = {t.twin_type_id: t for t in self.twin_types(tenant)}
        only = next(iter(newest.values())) if len(newest) == 1 else None
        return remedy_for_unknown_twin(twin_id, only)

    def _type_by_id(self, tenant: str) -> Callable[[str], TwinType | None]:
        def found(twin_id: str) -> TwinType | None:
            twin = self._twins.get((tenant, twin_id))
            return None if twin is None else self.type_of(tenant, twin)

        return found

    def _creation(
        self,
        tenant: str,
        offset: int,
        twin: Twin,
        fresh: Mapping[str, tuple[int, Twin]],
        if_absent: bool,
        commit_time_unix_us: int,
    ) -> Verdict:
        """Decide one creation, its relationships left aside."""
        existing = self._twins.get((tenant, twin.twin_id))
        if existing is None and twin.twin_id in fresh:
            existing = fresh[twin.twin_id][1]
        try:
            if existing is not None:
                if if_absent and existing.twin_type_id == twin.twin_type_id:
                    return Verdict(outcome=Outcome.NO_OP, twin=existing)
                raise _twin_exists(existing, if_absent)
            check_twin(twin)
            twin_type = self.require_twin_type(tenant, twin.twin_type_id, twin.twin_type_version)
            checked = valued(twin, twin_type)
        except TwinmeshError as error:
            return Verdict(outcome=Outcome.REJECTED, error=error)
        created = replace(
            checked,
            twin_type_version=twin_type.version,
            create_offset=offset,
            create_time_unix_us=commit_time_unix_us,
            revision=offset,
            kept_units=(),
        )
        return Verdict(outcome=Outcome.ACCEPTED, twin=created)

    def _drop_unconnected(self, tenant: str, fresh: dict[str, tuple[int, Twin]], verdicts: list[Verdict]) -> None:
        """Refuse twins whose relationships are not allowed, and then those that pointed to them, and so on."""
        exists = self._type_by_id(tenant)

        def found(twin_id: str) -> TwinType | None:
            new = fresh.get(twin_id)
            return exists(twin_id) if new is None else self.type_of(tenant, new[1])

        waiting = [entry for entry in fresh.values() if entry[1].relationships]
        while waiting:
            kept = []
            for i, twin in waiting:
                try:
                    check_edges(twin, self.type_of(tenant, twin), found)
                    kept.append((i, twin))
                except TwinmeshError as error:
                    verdicts[i] = Verdict(outcome=Outcome.REJECTED, error=error)
                    del fresh[twin.twin_id]
            if len(kept) == len(waiting):
                return
            waiting = kept

    def _twin_not_found(self, tenant: str, twin_id: str) -> NotFound:
        remedy = self.remedy(tenant, twin_id)
        return NotFound(
            f"twin {quoted(twin_id)} does not exist; create it with `{remedy}`",
            reason=Reason.TWIN_NOT_FOUND,
            metadata={"remedy": remedy},
        )


def _revision_differs(twin_id: str, revision: int, wanted: int) -> Conflict:
    return Conflict(
        f"Twin {quoted(twin_id)} is at revision {revision}, not {wanted}; read it, decide again and send its revision.",
        metadata={"current_revision": str(revision)},
    )


def _twin_exists(existing: Twin, if_absent: bool) -> AlreadyExists:
    kind = f"{existing.twin_type_id}@{existing.twin_type_version}"
    remedy = "another twin type cannot take its id" if if_absent else "set if_absent if that is fine"
    return AlreadyExists(f"twin {quoted(existing.twin_id)} exists, of type {kind}; {remedy}")
