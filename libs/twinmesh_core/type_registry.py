"""The twin types of a log: versioned, never changed once created, each resolved with all that it inherits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from twinmesh_core import inheritance
from twinmesh_core.errors import AlreadyExists, NotFound, Reason, TwinmeshError, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.registry import TwinType, parse_reference
from twinmesh_core.registry_rules import check_resolved, check_twin_type
from twinmesh_core.registry_verdict import Outcome, Verdict


class TypeRegistry:
    """Twin types of all tenants as of `offset`; the part of the registry that is about types.

    Args:
        offset: the log offset up to which entries are folded.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._declared: dict[tuple[str, str], dict[int, TwinType]] = {}
        self._types: dict[tuple[str, str], dict[int, TwinType]] = {}
        self._extended: dict[str, dict[str, set[str]]] = {}

    @property
    def offset(self) -> int:
        """The log offset up to which entries are folded."""
        return self._offset

    def advance(self, offset: int) -> None:
        """Note that nothing up to `offset` concerns the registry."""
        self._offset = max(self._offset, offset)

    def create_twin_type(self, tenant: str, offset: int, twin_type: TwinType) -> Verdict:
        """Decide the creation of a type's version: new, equal to the one that exists, or refused."""
        self.advance(offset)
        key = (tenant, twin_type.twin_type_id)
        existing = self._declared.get(key, {}).get(twin_type.version)
        # Also equal: the type as it is read, with all that it inherits.
        if existing is not None and twin_type in (existing, self._types[key][twin_type.version]):
            return Verdict(outcome=Outcome.NO_OP, twin_type=existing)
        try:
            check_twin_type(twin_type)
            if existing is not None:
                raise _type_differs(existing)
            resolved = self._resolved(tenant, twin_type)
            if resolved is not twin_type:
                check_resolved(resolved)
            _check_kinds_stay(resolved, self._types.get(key, {}))
        except TwinmeshError as error:
            return Verdict(outcome=Outcome.REJECTED, error=error)
        created = replace(twin_type, create_offset=offset)
        self._put_type(tenant, created, replace(resolved, create_offset=offset))
        return Verdict(outcome=Outcome.ACCEPTED, twin_type=created)

    def twin_type(self, tenant: str, twin_type_id: str, version: int = 0) -> TwinType | None:
        """Return a version of a type (0 = the newest) with all that it inherits, or None."""
        versions = self._types.get((tenant, twin_type_id))
        if not versions:
            return None
        return versions.get(version or max(versions))

    def declared_type(self, tenant: str, twin_type: TwinType) -> TwinType:
        """Return a type of this registry as it was written, without what it inherits."""
        return self._declared[tenant, twin_type.twin_type_id][twin_type.version]

    def declared_types(self) -> tuple[tuple[str, TwinType], ...]:
        """Return every version of every type of all tenants as it was written, tenant first, in order of ids."""
        return tuple(
            (tenant, versions[version])
            for (tenant, _), versions in sorted(self._declared.items())
            for version in sorted(versions)
        )

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

    def _put_type(self, tenant: str, declared: TwinType, resolved: TwinType) -> None:
        key = (tenant, declared.twin_type_id)
        self._declared.setdefault(key, {})[declared.version] = declared
        self._types.setdefault(key, {})[declared.version] = resolved
        if declared.extends:
            self._extended.setdefault(tenant, {}).setdefault(declared.twin_type_id, set()).add(resolved.ancestors[0])

    def _resolved(self, tenant: str, twin_type: TwinType) -> TwinType:
        """Return a type with all that it inherits; raises what is wrong with that."""
        reference = parse_reference(twin_type.extends)
        if reference is None:
            return twin_type
        base_id, version = reference
        edges = self._extended.get(tenant, {})
        loop = inheritance.path_between(edges, base_id, twin_type.twin_type_id)
        if loop is not None:
            way = " extends ".join(map(quoted, loop))
            text = f"{quoted(twin_type.twin_type_id)} cannot extend {quoted(base_id)}"
            reason = "it is the same type" if len(loop) == 1 else f"{way} already, so each would be one of the other"
            raise invalid_field("twin_type.extends", f"{text}: {reason}")
        base = self.require_twin_type(tenant, base_id, version)
        if len(base.ancestors) >= inheritance.MAX_DEPTH:
            deep = f"{base.reference} extends {len(base.ancestors)} types, which is the most one may extend"
            raise invalid_field("twin_type.extends", deep)
        return inheritance.resolve(twin_type, base, lambda kind, other: self._is_a(tenant, kind, other))

    def _is_a(self, tenant: str, kind: str, other: str) -> bool:
        return kind == other or any(t.is_a(other) for t in self._types.get((tenant, kind), {}).values())


def _type_differs(existing: TwinType) -> AlreadyExists:
    return AlreadyExists(
        f"twin type {quoted(existing.twin_type_id)} version {existing.version} exists with other content; "
        f"a version never changes, create version {existing.version + 1} instead"
    )


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
