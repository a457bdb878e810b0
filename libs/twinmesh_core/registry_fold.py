"""The registry of a log: which twin types and twins exist at an offset, decided by the entries alone.

State-sync and ingestion both fold the same control entries with this class, so they agree without talking. The fold is
pure: no clock, no input but entries in the order of their offsets; it can stop anywhere, be snapshotted, and go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from twinmesh_core.errors import (
    AlreadyExists,
    NotFound,
    Reason,
    TwinmeshError,
    invalid_field,
)
from twinmesh_core.ids import quoted
from twinmesh_core.registry import (
    ChannelSpec,
    Twin,
    TwinType,
    check_twin,
    check_twin_type,
    missing_properties,
    remedy_for_unknown_twin,
)


class Outcome(Enum):
    """What the fold made of an entry."""

    ACCEPTED = "accepted"
    """It took effect."""
    NO_OP = "no-op"
    """What it asks for is already so; its writer is answered as if it had been accepted."""
    REJECTED = "rejected"
    """Its condition does not hold; it has no effect and its writer gets the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The fold's decision about one entry.

    Attributes:
        outcome: what became of it.
        error: why it was rejected; None otherwise.
        twin_type: the type it created or found, for entries about types.
        twin: the twin it created, found or deleted, for entries about twins.
    """

    outcome: Outcome
    error: TwinmeshError | None = None
    twin_type: TwinType | None = None
    twin: Twin | None = None

    @property
    def effective(self) -> bool:
        """Whether state changed."""
        return self.outcome is Outcome.ACCEPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySnapshot:
    """Everything a `RegistryFold` holds at one offset, tenant first, in order of ids."""

    offset: int = 0
    twin_types: tuple[tuple[str, TwinType], ...] = ()
    twins: tuple[tuple[str, Twin], ...] = ()


_EMPTY: Final = RegistrySnapshot()


class RegistryFold:
    """Twin types and twins of all tenants as of `offset`; not safe for use from several threads.

    Args:
        snapshot: where to go on from; the default is the empty log.
    """

    def __init__(self, snapshot: RegistrySnapshot = _EMPTY) -> None:
        self._offset = snapshot.offset
        self._types: dict[tuple[str, str], dict[int, TwinType]] = {}
        self._twins: dict[tuple[str, str], Twin] = {}
        for tenant, twin_type in snapshot.twin_types:
            self._types.setdefault((tenant, twin_type.twin_type_id), {})[twin_type.version] = twin_type
        for tenant, twin in snapshot.twins:
            self._twins[tenant, twin.twin_id] = twin

    @property
    def offset(self) -> int:
        """The log offset up to which entries are folded."""
        return self._offset

    def advance(self, offset: int) -> None:
        """Note that nothing up to `offset` concerns the registry."""
        self._offset = max(self._offset, offset)

    def snapshot(self) -> RegistrySnapshot:
        """Return everything, as values that later entries do not change."""
        return RegistrySnapshot(
            offset=self._offset,
            twin_types=tuple(
                (tenant, versions[version])
                for (tenant, _), versions in sorted(self._types.items())
                for version in sorted(versions)
            ),
            twins=tuple((tenant, twin) for (tenant, _), twin in sorted(self._twins.items())),
        )

    def create_twin_type(self, tenant: str, offset: int, twin_type: TwinType) -> Verdict:
        """Decide the creation of a type's version: new, equal to the one that exists, or refused."""
        self.advance(offset)
        versions = self._types.get((tenant, twin_type.twin_type_id), {})
        existing = versions.get(twin_type.version)
        if existing is not None and existing == twin_type:
            return Verdict(outcome=Outcome.NO_OP, twin_type=existing)
        try:
            check_twin_type(twin_type)
            if existing is not None:
                raise _type_differs(existing)
            _check_kinds_stay(twin_type, versions)
        except TwinmeshError as error:
            return Verdict(outcome=Outcome.REJECTED, error=error)
        created = replace(twin_type, create_offset=offset)
        self._types.setdefault((tenant, twin_type.twin_type_id), {})[created.version] = created
        return Verdict(outcome=Outcome.ACCEPTED, twin_type=created)

    def create_twin(
        self, tenant: str, offset: int, twin: Twin, *, if_absent: bool = False, commit_time_unix_us: int = 0
    ) -> Verdict:
        """Decide the creation of a twin; version 0 becomes the newest version of its type at this offset."""
        self.advance(offset)
        existing = self._twins.get((tenant, twin.twin_id))
        try:
            if existing is not None:
                if if_absent and existing.twin_type_id == twin.twin_type_id:
                    return Verdict(outcome=Outcome.NO_OP, twin=existing)
                raise _twin_exists(existing, if_absent)
            check_twin(twin)
            twin_type = self.require_twin_type(tenant, twin.twin_type_id, twin.twin_type_version)
            missing = missing_properties(twin, twin_type)
            if missing:
                raise invalid_field("twin.attributes", f"must state what the type requires: {', '.join(missing)}")
        except TwinmeshError as error:
            return Verdict(outcome=Outcome.REJECTED, error=error)
        created = replace(
            twin,
            twin_type_version=twin_type.version,
            create_offset=offset,
            create_time_unix_us=commit_time_unix_us,
        )
        self._twins[tenant, twin.twin_id] = created
        return Verdict(outcome=Outcome.ACCEPTED, twin=created)

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

    def twin_type(self, tenant: str, twin_type_id: str, version: int = 0) -> TwinType | None:
        """Return a version of a type (0 = the newest), or None."""
        versions = self._types.get((tenant, twin_type_id))
        if not versions:
            return None
        return versions.get(version or max(versions))

    def type_of(self, tenant: str, twin: Twin) -> TwinType:
        """Return the type of a twin of this registry: it always exists."""
        return self._types[tenant, twin.twin_type_id][twin.twin_type_version]

    def twins(self, tenant: str) -> Iterator[Twin]:
        """Yield the living twins of a tenant in order of ids."""
        for key in sorted(key for key in self._twins if key[0] == tenant):
            yield self._twins[key]

    def twin_types(self, tenant: str) -> Iterator[TwinType]:
        """Yield every version of every type of a tenant in order of ids, then versions."""
        for key in sorted(key for key in self._types if key[0] == tenant):
            for version in sorted(self._types[key]):
                yield self._types[key][version]

    def require_twin_type(self, tenant: str, twin_type_id: str, version: int = 0) -> TwinType:
        """Return a version of a type (0 = the newest).

        Raises:
            NotFound: TWIN_TYPE_NOT_FOUND, naming what exists.
        """
        found = self.twin_type(tenant, twin_type_id, version)
        if found is not None:
            return found
        versions = sorted(self._types.get((tenant, twin_type_id), {}))
        if versions:
            has = f"it has the versions {', '.join(map(str, versions[-10:]))}"
            raise NotFound(
                f"twin type {quoted(twin_type_id)} has no version {version}; {has}", reason=Reason.TWIN_TYPE_NOT_FOUND
            )
        raise NotFound(
            f"twin type {quoted(twin_type_id)} does not exist; create it with `twinmesh types create FILE`",
            reason=Reason.TWIN_TYPE_NOT_FOUND,
            metadata={"remedy": "twinmesh types create FILE"},
        )

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

    def _twin_not_found(self, tenant: str, twin_id: str) -> NotFound:
        remedy = self.remedy(tenant, twin_id)
        return NotFound(
            f"twin {quoted(twin_id)} does not exist; create it with `{remedy}`",
            reason=Reason.TWIN_NOT_FOUND,
            metadata={"remedy": remedy},
        )


def _type_differs(existing: TwinType) -> AlreadyExists:
    return AlreadyExists(
        f"twin type {quoted(existing.twin_type_id)} version {existing.version} exists with other content; "
        f"a version never changes, create version {existing.version + 1} instead"
    )


def _twin_exists(existing: Twin, if_absent: bool) -> AlreadyExists:
    kind = f"{existing.twin_type_id}@{existing.twin_type_version}"
    remedy = "another twin type cannot take its id" if if_absent else "set if_absent if that is fine"
    return AlreadyExists(f"twin {quoted(existing.twin_id)} exists, of type {kind}; {remedy}")


def _check_kinds_stay(twin_type: TwinType, versions: dict[int, TwinType]) -> None:
    for version, other in versions.items():
        for i, channel in enumerate(twin_type.channels):
            before = other.channel(channel.name)
            if before is not None and before.kind != channel.kind:
                raise invalid_field(
                    f"twin_type.channels[{i}].kind",
                    f"{quoted(channel.name)} is a {before.kind.name} in version {version}; "
                    "a channel's kind never changes, use another name",
                )
