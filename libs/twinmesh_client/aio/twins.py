"""Twin types and twins of a mesh."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.aio.questions import ask_past
from twinmesh_client.aio.twin import Twin
from twinmesh_client.aio.watcher import Watcher
from twinmesh_client.bulk import TwinMigration, TwinResult, migrations, parts, results, targets_first
from twinmesh_client.durations import Moment, moment_us, proto_moment
from twinmesh_client.registry_mapping import twin_to_message, twin_type_from_message, twin_type_to_message
from twinmesh_client.removals import Erasure, erasure
from twinmesh_client.replicas import Position, TwinSummary, position, twin_summary
from twinmesh_client.transport import call
from twinmesh_client.values import plain_values
from twinmesh_core import registry
from twinmesh_core.errors import invalid_field
from twinmesh_core.geometry import Geometry

PAGE = 1_000
REPLICA_PAGE = 200
"""Whole replicas are large, and a page is one message."""
MIGRATION_PART = 500


class TwinTypes:
    """The versioned models of kinds of entities."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, twin_type: registry.TwinType) -> registry.TwinType:
        """Create a version of a twin type; creating it again with equal content changes nothing.

        Raises:
            InvalidArgument: names every field that is wrong.
            AlreadyExists: this version exists with other content.
        """
        request = statesync_pb2.CreateTwinTypeRequest(
            twin_type=twin_type_to_message(twin_type), request_id=new_request_id()
        )
        answer = await call(self._connection.twins.CreateTwinType, request, timeout_s=self._connection.timeout_s)
        return twin_type_from_message(answer.twin_type)

    async def get(self, reference: str, *, declared: bool = False) -> registry.TwinType:
        """Return a twin type by ``id`` (the newest version) or ``id@version``; raises `NotFound`.

        Args:
            reference: which.
            declared: as it was written, without what it inherits.
        """
        name, version = split_reference(reference)
        request = statesync_pb2.GetTwinTypeRequest(twin_type_id=name, version=version, declared=declared)
        answer = await call(self._connection.twins.GetTwinType, request, timeout_s=self._connection.timeout_s)
        return twin_type_from_message(answer.twin_type)

    async def list(self) -> list[registry.TwinType]:
        """Return the newest version of each twin type."""
        found: list[registry.TwinType] = []
        token = ""
        while True:
            request = statesync_pb2.ListTwinTypesRequest(page_size=PAGE, page_token=token)
            answer = await call(self._connection.twins.ListTwinTypes, request, timeout_s=self._connection.timeout_s)
            found.extend(twin_type_from_message(t) for t in answer.twin_types)
            token = answer.next_page_token
            if not token:
                return found


class Twins:
    """The twins of a mesh; ``twins["T1"]`` is a handle on one, whether it exists or not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getitem__(self, twin_id: str) -> Twin:
        return Twin(self._connection, twin_id)

    async def create(
        self,
        twin_id: str,
        *,
        type: str,  # noqa: A002  the word of the field, and of `twinmesh twins create --type`
        time_zone: str = "",
        display_name: str = "",
        attributes: Mapping[str, str] | None = None,
        relationships: Iterable[tuple[str, str]] = (),
        properties: Mapping[str, Any] | None = None,
        geometry: Geometry | None = None,
        if_absent: bool = False,
    ) -> Twin:
        """Create a twin and return its handle.

        Args:
            twin_id: chosen by you, kept for the entity's life.
            type: its twin type, ``id`` (the newest version) or ``id@version``.
            time_zone: IANA zone of the entity; empty = UTC.
            display_name: for people.
            attributes: free facts such as site and serial.
            relationships: edges as (name, target twin).
            properties: values of the type's properties, in their units; defaults are filled in.
            geometry: its own shape and place, in place of its type's.
            if_absent: an existing twin of the same type is fine.

        Raises:
            NotFound: no such twin type.
            InvalidArgument: a property or edge does not fit the type; names it.
            FailedPrecondition: RELATIONSHIP_TARGET.
            AlreadyExists: the twin exists (and `if_absent` is not set, or it is of another type).
        """
        name, version = split_reference(type)
        twin = registry.Twin(
            twin_id=twin_id,
            twin_type_id=name,
            twin_type_version=version,
            time_zone=time_zone,
            display_name=display_name,
            attributes=dict(attributes or {}),
            relationships=tuple(registry.Relationship(name=n, target_twin_id=t) for n, t in relationships),
            properties=plain_values(properties or {}, "properties"),
            geometry=geometry,
        )
        request = statesync_pb2.CreateTwinRequest(
            twin=twin_to_message(twin), if_absent=if_absent, request_id=new_request_id()
        )
        await call(self._connection.twins.CreateTwin, request, timeout_s=self._connection.timeout_s)
        return self[twin_id]

    async def create_many(
        self,
        twins: Iterable[registry.Twin],
        *,
        if_absent: bool = False,
        all_or_nothing: bool = False,
        request_id: str = "",
    ) -> list[TwinResult]:
        """Create many twins, thousands a second; returns what became of each, in the order given.

        They are sent so that targets of relationships come before those that point to them.

        Args:
            twins: any number; with `all_or_nothing` at most 10,000.
            if_absent: existing twins of the same type are fine.
            all_or_nothing: if one is refused, none is created.
            request_id: give the same one to repeat a call whose outcome is not known; it goes on where it was cut off.
        """
        wanted = list(twins)
        ordered = targets_first(wanted)
        request_id = request_id or new_request_id()
        found: dict[int, TwinResult] = {}
        start = 0
        for number, part in enumerate(parts(ordered, together=all_or_nothing)):
            request = statesync_pb2.CreateTwinsRequest(
                twins=part, if_absent=if_absent, all_or_nothing=all_or_nothing, request_id=f"{request_id}.{number}"
            )
            answer = await call(self._connection.twins.CreateTwins, request, timeout_s=self._connection.timeout_s)
            for twin, result in zip(ordered[start : start + len(part)], results(answer), strict=True):
                found[id(twin)] = result
            start += len(part)
        return [found[id(twin)] for twin in wanted]

    async def migrate(
        self,
        type: str,  # noqa: A002  as in `create`
        *,
        from_version: int = 0,
        twin_ids: Sequence[str] = (),
        dry_run: bool = False,
        request_id: str = "",
    ) -> AsyncGenerator[TwinMigration, None]:
        """Bring twins to another version of their type, and yield what becomes of each.

        Args:
            type: the version to come to, ``id@version``; ``id`` = the newest.
            from_version: only twins of this version; 0 = of any other.
            twin_ids: only these; none = all of the type.
            dry_run: change nothing, tell what would be.
            request_id: give the same one to repeat a run that was cut off: it goes on, and says the same again.
        """
        name, version = split_reference(type)
        request_id = request_id or new_request_id()
        ids = list(twin_ids)
        after, number = "", 0
        while True:
            part, ids = ids[:MIGRATION_PART], ids[MIGRATION_PART:]
            request = statesync_pb2.MigrateTwinsRequest(
                twin_type_id=name,
                to_version=version,
                from_version=from_version,
                twin_ids=part,
                after_twin_id=after,
                dry_run=dry_run,
                request_id=f"{request_id}.{number}",
            )
            answer = await call(self._connection.twins.MigrateTwins, request, timeout_s=self._connection.timeout_s)
            version = answer.to_version  # the newest may be another by the next part
            for migration in migrations(answer):
                yield migration
            after, number = answer.next_after_twin_id, number + 1
            if not ids and not after:
                return

    async def delete(self, twin_id: str) -> None:
        """Delete a twin: watchers are told, its history stays; raises `NotFound`."""
        request = statesync_pb2.DeleteTwinRequest(twin_id=twin_id, request_id=new_request_id())
        await call(self._connection.twins.DeleteTwin, request, timeout_s=self._connection.timeout_s)

    async def delete_range(
        self,
        twin_id: str,
        *channels: str,
        start: Moment | None = None,
        end: Moment | None = None,
        request_id: str = "",
    ) -> Position:
        """Hide observations that arrived before from every read; later arrivals are accepted.

        Args:
            twin_id: whose.
            channels: which; none = all.
            start: from this event time on (included); None = from the beginning.
            end: up to this event time (excluded); None = to the end.
            request_id: give the same one to repeat a call whose outcome is not known.

        Returns:
            From which offset on they are hidden: reads with it as `min_offset` show them no more.

        Raises:
            NotFound: the twin, or a channel of it, was never heard from.
        """
        request = storage_pb2.DeleteRangeRequest(request_id=request_id or new_request_id())
        if channels:
            request.series.extend(storage_pb2.SeriesSelector(twin_id=twin_id, channel=c) for c in channels)
        else:
            request.twin_ids.append(twin_id)
        if start is not None:
            request.start_time.CopyFrom(proto_moment(moment_us(start, "start")))
        if end is not None:
            request.end_time.CopyFrom(proto_moment(moment_us(end, "end")))
        answer = await call(self._connection.storage.DeleteRange, request, timeout_s=self._connection.timeout_s)
        return position(answer.position)

    async def erase(self, twin_id: str, *, request_id: str = "") -> Erasure:
        """Remove every value of a twin that arrived before, for good; returns once no read shows them any more.

        Look at ``mesh.erasure(erasure_id)`` until it has ended. It cannot be taken back.

        Args:
            twin_id: whose.
            request_id: give the same one to repeat a call whose outcome is not known.

        Raises:
            NotFound: the twin was never heard from.
        """
        request = storage_pb2.EraseTwinRequest(twin_id=twin_id, request_id=request_id or new_request_id())
        answer = await call(self._connection.storage.EraseTwin, request, timeout_s=self._connection.timeout_s)
        return erasure(answer.erasure)

    async def list(
        self,
        *,
        type: str = "",  # noqa: A002  as in `create`
        filter: str = "",  # noqa: A002  the word of the field, and of `twinmesh twins list --filter`
        order_by: str = "",
        replicas: bool = False,
        mask: Sequence[str] = (),
        at_offset: int | None = None,
        at: Moment | None = None,
    ) -> list[TwinSummary]:
        """Return all twins that match, as they are at one offset of the log, or as they were.

        Args:
            type: only twins of this type.
            filter: only twins that match, e.g. ``attributes.site = "north" AND reported.temperature > 50 degC``.
            order_by: e.g. ``reported.load desc, twin_id``; "" = by id.
            replicas: each twin with its replica.
            mask: with its replica, but only these parts, e.g. ``["reported.temperature", "delta"]``.
            at_offset: see `Twin.get`; filter and order are of the twins as they were.
            at: likewise.

        Raises:
            InvalidArgument: of a filter it names the column and the remedy.
            OutOfRange: PAGE_EXPIRED, so many changes came between two pages that the first one's offset is gone.
        """
        found: list[TwinSummary] = []
        whole = replicas or bool(mask)
        request = statesync_pb2.ListTwinsRequest(
            twin_type_id=type,
            filter=filter,
            order_by=order_by,
            include_replica=whole,
            page_size=REPLICA_PAGE if whole else PAGE,
        )
        request.read_mask.paths.extend(mask)
        ask_past(request, 0, at_offset, at)
        while True:
            answer = await call(self._connection.twins.ListTwins, request, timeout_s=self._connection.timeout_s)
            as_of = position(answer.as_of)
            found.extend(twin_summary(t, as_of) for t in answer.twins)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    async def count(
        self,
        *,
        type: str = "",  # noqa: A002  as in `create`
        filter: str = "",  # noqa: A002  as in `list`
    ) -> int:
        """Return how many twins match; see `list`."""
        request = statesync_pb2.CountTwinsRequest(twin_type_id=type, filter=filter)
        answer = await call(self._connection.twins.CountTwins, request, timeout_s=self._connection.timeout_s)
        return answer.count

    def watch(
        self,
        twin_ids: Sequence[str] = (),
        *,
        type: str = "",  # noqa: A002  as in `create`
        resume_after: Position | None = None,
        policy: str = "reliable",
        resync: bool | None = None,
        keep_replicas: bool = False,
        filter: str = "",  # noqa: A002  as in `list`
        mask: Sequence[str] = (),
    ) -> Watcher:
        """Watch the changes of many twins; see `Twin.watch`.

        Args:
            twin_ids: only these.
            type: only twins of this type.
            resume_after: see `Twin.watch`, as what follows it.
            policy: when you are slow.
            resync: RESET and a snapshot instead of an error.
            keep_replicas: see `Watcher.replicas`.
            filter: only twins that match; ENTERED, LEFT and DELETED tell of those that come and go.
            mask: only changes of these parts, e.g. ``["reported.temperature", "delta", "commands"]``.
        """
        return Watcher(
            self._connection, twin_ids, type, resume_after, policy, resync, keep_replicas, filter=filter, mask=mask
        )


def split_reference(reference: str) -> tuple[str, int]:
    """Split ``id@version``; version 0 = the newest. Raises `InvalidArgument` for a version that is no number."""
    name, _, version = reference.partition("@")
    if version and not version.isdigit():
        raise invalid_field("type", f"{reference!r}: the version after @ must be a number, e.g. {name}@1")
    return name, int(version or 0)
