"""Many twins at once, changes of what a twin is, and migrations: from the request to the entries and to the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import error_pb2
from twinmesh_core.calendar import require_time_zone
from twinmesh_core.errors import Conflict, InvalidArgument, TwinmeshError, invalid_field
from twinmesh_core.ids import require_resource_id, require_twin_id
from twinmesh_core.migration import MigrationOutcome, MigrationPlan, UnitChange, UnitChanges
from twinmesh_core.registry import Twin, TwinType
from twinmesh_core.registry_fold import Outcome
from twinmesh_core.registry_rules import check_writable
from twinmesh_core.twin_updates import check_paths, split_path
from twinmesh_core.units import Units
from twinmesh_runtime.caller import Caller
from twinmesh_runtime.registry_mapping import twin_from_message, twin_to_message
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.entries import CreateTwins, MigrateTwins, UpdateTwin
from twinmesh_statesync.domain.identities import MAX_MIGRATED
from twinmesh_statesync.domain.migration import plan_state
from twinmesh_statesync.domain.writer import Writer, request_id_or_new
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.mutation import content_of
from twinmesh_statesync.rpc.reading import Reading

MAX_TWINS: Final = 10_000
TWINS_PER_ENTRY: Final = 1_000
MAX_BULK_REQUEST_ID: Final = 100
DEFAULT_MIGRATED: Final = 500
_MAX_TOLD_BYTES: Final = 4 * 1_024
"""Longest current state that travels with a conflict: metadata of a call is bounded by what peers accept."""


class Identities:
    """Serves what changes twins beside their creation one by one.

    Args:
        reading: read access to the fold.
        writer: has mutations decided.
        units: which units there are.
    """

    def __init__(self, reading: Reading, writer: Writer, units: Units) -> None:
        self._reading = reading
        self._writer = writer
        self._units = units

    async def create(
        self, caller: Caller, request: statesync_pb2.CreateTwinsRequest
    ) -> statesync_pb2.CreateTwinsResponse:
        """Create many twins."""
        if not 1 <= len(request.twins) <= MAX_TWINS:
            raise invalid_field("twins", f"must hold 1 to {MAX_TWINS:,} twins")
        request_id = _bulk_request_id(request.request_id)
        results: list[statesync_pb2.CreateTwinResult] = []
        wanted: list[tuple[int, Twin]] = []
        for place, message in enumerate(request.twins):
            results.append(statesync_pb2.CreateTwinResult(twin_id=message.twin_id))
            try:
                twin = twin_from_message(message)
                check_writable(twin)
                wanted.append((place, twin))
            except InvalidArgument as error:
                _refuse(results[place], error)
        position = self._reading.live.position
        if request.all_or_nothing and len(wanted) < len(results):
            for place, _ in wanted:
                results[place].outcome = statesync_pb2.TWIN_OUTCOME_LEFT_OUT
        elif wanted:
            size = len(wanted) if request.all_or_nothing else TWINS_PER_ENTRY
            position = await self._create_in_parts(caller, request, request_id, wanted, size, results)
        outcomes = [result.outcome for result in results]
        return statesync_pb2.CreateTwinsResponse(
            results=results,
            created_count=outcomes.count(statesync_pb2.TWIN_OUTCOME_CREATED),
            refused_count=outcomes.count(statesync_pb2.TWIN_OUTCOME_REFUSED),
            position=position_to_message(position),
        )

    async def _create_in_parts(
        self,
        caller: Caller,
        request: statesync_pb2.CreateTwinsRequest,
        request_id: str,
        wanted: Sequence[tuple[int, Twin]],
        size: int,
        results: list[statesync_pb2.CreateTwinResult],
    ) -> Position:
        content = content_of(request)
        position = self._reading.live.position
        for number, start in enumerate(range(0, len(wanted), size)):
            part = wanted[start : start + size]
            action = CreateTwins(
                twins=tuple(twin for _, twin in part),
                if_absent=request.if_absent,
                all_or_nothing=request.all_or_nothing,
            )
            decided = await self._writer.write(
                caller.tenant, caller.principal, action, request_id=f"{request_id}/{number}", content=content
            )
            position = decided.position
            for place, _ in part:
                results[place].outcome = statesync_pb2.TWIN_OUTCOME_CREATED
            for verdict in decided.verdict.twins:
                result = results[part[verdict.place][0]]
                if verdict.error is not None:
                    _refuse(result, verdict.error)
                elif verdict.outcome is Outcome.NO_OP:
                    result.outcome = statesync_pb2.TWIN_OUTCOME_EXISTED
                else:
                    result.outcome = statesync_pb2.TWIN_OUTCOME_LEFT_OUT
        return position

    async def update(
        self, caller: Caller, request: statesync_pb2.UpdateTwinRequest
    ) -> statesync_pb2.UpdateTwinResponse:
        """Change what a twin is."""
        wanted = twin_from_message(request.twin)
        require_twin_id(wanted.twin_id, "twin.twin_id")
        paths = tuple(request.update_mask.paths)
        check_paths(paths)
        if "time_zone" in paths:
            require_time_zone(wanted.time_zone, "twin.time_zone")
        action = UpdateTwin(
            twin=wanted, paths=paths, if_revision=request.if_revision if request.HasField("if_revision") else None
        )
        try:
            decided = await self._writer.write(
                caller.tenant,
                caller.principal,
                action,
                request_id=request_id_or_new(request.request_id),
                content=content_of(request),
            )
        except Conflict as conflict:
            raise self._with_current(caller.tenant, wanted.twin_id, paths, conflict) from None
        state = await self._reading.twin(caller.tenant, wanted.twin_id)
        return statesync_pb2.UpdateTwinResponse(
            twin=twin_to_message(state.twin),
            position=position_to_message(decided.position),
            changed=decided.verdict.outcome is Outcome.ACCEPTED,
        )

    def _with_current(self, tenant: str, twin_id: str, paths: Iterable[str], conflict: Conflict) -> Conflict:
        """Return the conflict with the present values of what the caller meant to change."""
        state = self._reading.live.fold.state(tenant, twin_id)
        if state is None:
            return conflict
        whole = MessageToDict(twin_to_message(state.twin), preserving_proto_field_name=True)
        current: dict[str, Any] = {}
        for path in paths:
            field, name = split_path(path)
            if not name or field == "relationships":
                current[field] = whole.get(field)
            else:
                current.setdefault(field, {})[name] = whole.get(field, {}).get(name)
        told = json.dumps(current, separators=(",", ":"))
        revision = str(state.twin.revision or state.twin.create_offset)
        metadata = {**conflict.metadata, "current_revision": revision}
        if len(told) <= _MAX_TOLD_BYTES:
            metadata["current"] = told
        return Conflict(conflict.message, metadata=metadata)

    async def migrate(
        self, caller: Caller, request: statesync_pb2.MigrateTwinsRequest
    ) -> statesync_pb2.MigrateTwinsResponse:
        """Bring twins to another version of their type, or tell what that would do."""
        _check_migration(request)
        registry = self._reading.live.fold.registry
        target = registry.require_twin_type(caller.tenant, request.twin_type_id, request.to_version)
        units = await self._unit_changes(caller.tenant, target)
        limit = request.page_size or DEFAULT_MIGRATED
        if request.dry_run:
            return self._rehearse(caller.tenant, request, target, units, limit)
        action = MigrateTwins(
            twin_type_id=target.twin_type_id,
            to_version=target.version,
            twin_ids=tuple(request.twin_ids),
            after_twin_id=request.after_twin_id,
            limit=0 if request.twin_ids else limit,
            from_version=request.from_version,
            units=units,
        )
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            action,
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        return _report(target.version, decided.verdict.migrations, decided.verdict.more, decided.position)

    def _rehearse(
        self,
        tenant: str,
        request: statesync_pb2.MigrateTwinsRequest,
        target: TwinType,
        units: UnitChanges,
        limit: int,
    ) -> statesync_pb2.MigrateTwinsResponse:
        fold = self._reading.live.fold
        ids = list(request.twin_ids) or fold.registry.ids_to_migrate(
            tenant, target, request.from_version, request.after_twin_id, limit
        )
        told = []
        for plan in fold.registry.plan_migrations(tenant, ids, target, request.from_version, units):
            state = fold.state(tenant, plan.twin_id)
            steps = plan.steps
            if plan.outcome is MigrationOutcome.MIGRATED and state is not None:
                steps += plan_state(state, plan, target, fold.offset + 1, 0).steps
            told.append(_with_steps(plan, steps))
        more = not request.twin_ids and len(ids) == limit
        return _report(target.version, told, more, self._reading.live.position)

    async def _unit_changes(self, tenant: str, target: TwinType) -> UnitChanges:
        """Work out how the units of all other versions become those of `target`; what cannot is left out."""
        versions = [
            t
            for t in self._reading.live.fold.registry.twin_types(tenant)
            if t.twin_type_id == target.twin_type_id and t.version != target.version
        ]
        channels = {
            (c.name, was.unit, c.unit)
            for version in versions
            for c in target.channels
            if c.kind.has_unit and (was := version.channel(c.name)) is not None and was.unit != c.unit
        }
        properties = {
            (p.name, old.unit, p.unit)
            for version in versions
            for p in target.properties
            if p.kind.numeric and (old := version.property(p.name)) is not None and old.unit != p.unit
        }
        unlearnt = self._units.unlearnt({unit for _, *both in channels | properties for unit in both})
        if unlearnt:
            await asyncio.to_thread(self._units.learn, unlearnt)
        return UnitChanges(
            channels=tuple(self._changes(sorted(channels))), properties=tuple(self._changes(sorted(properties)))
        )

    def _changes(self, wanted: Iterable[tuple[str, str, str]]) -> Iterator[UnitChange]:
        for name, source, target in wanted:
            try:
                change = self._units.conversion(source, target)
                same = self._units.canonical(source) == self._units.canonical(target)
            except InvalidArgument:
                continue  # twins that hold to it are blocked, and their report says so
            yield UnitChange(name=name, from_unit=source, same_unit=same, scale=change.scale, offset=change.offset)


def _check_migration(request: statesync_pb2.MigrateTwinsRequest) -> None:
    require_resource_id(request.twin_type_id, "twin_type_id")
    for name in ("to_version", "from_version"):
        if getattr(request, name) < 0:
            raise invalid_field(name, "must be the number of a version, or 0")
    if len(request.twin_ids) > MAX_MIGRATED:
        raise invalid_field("twin_ids", f"must hold at most {MAX_MIGRATED:,} twins")
    for i, twin_id in enumerate(request.twin_ids):
        require_twin_id(twin_id, f"twin_ids[{i}]")
    if not 0 <= request.page_size <= MAX_MIGRATED:
        raise invalid_field("page_size", f"must be 1 to {MAX_MIGRATED:,}, or 0 for {DEFAULT_MIGRATED}")
    if request.after_twin_id:
        require_twin_id(request.after_twin_id, "after_twin_id")
        if request.twin_ids:
            raise invalid_field("after_twin_id", "goes with empty twin_ids only")


def _report(
    to_version: int, plans: Iterable[MigrationPlan], more: bool, position: Position
) -> statesync_pb2.MigrateTwinsResponse:
    response = statesync_pb2.MigrateTwinsResponse(to_version=to_version, position=position_to_message(position))
    for plan in plans:
        migration = response.migrations.add(
            twin_id=plan.twin_id,
            from_version=plan.from_version,
            outcome=statesync_pb2.MigrationOutcome.ValueType(plan.outcome),
        )
        for step in plan.steps:
            effect = statesync_pb2.MigrationEffect.ValueType(step.effect)
            migration.steps.add(part=step.part, effect=effect, detail=step.detail)
    if more and response.migrations:
        response.next_after_twin_id = response.migrations[-1].twin_id
    return response


def _with_steps(plan: MigrationPlan, steps: tuple[Any, ...]) -> MigrationPlan:
    return MigrationPlan(twin_id=plan.twin_id, from_version=plan.from_version, outcome=plan.outcome, steps=steps)


def _refuse(result: statesync_pb2.CreateTwinResult, error: TwinmeshError) -> None:
    result.outcome = statesync_pb2.TWIN_OUTCOME_REFUSED
    name = f"ERROR_REASON_{error.reason}"
    known = name in error_pb2.ErrorReason.keys()  # noqa: SIM118  an enum's names, not a mapping's keys
    result.reason = error_pb2.ErrorReason.Value(name) if known else error_pb2.ERROR_REASON_UNSPECIFIED
    result.message = error.message


def _bulk_request_id(text: str) -> str:
    request_id = request_id_or_new(text)
    if len(request_id) > MAX_BULK_REQUEST_ID:
        raise invalid_field("request_id", f"must be at most {MAX_BULK_REQUEST_ID} characters for a bulk request")
    return request_id
