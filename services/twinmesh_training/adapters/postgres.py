"""The registry in PostgreSQL, schema ``training``: a change is one transaction; workers meet in the table of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from twinmesh_runtime.postgres import Pool, connection
from twinmesh_training.adapters import sql
from twinmesh_training.adapters.plain import from_plain, to_plain
from twinmesh_training.domain import faults
from twinmesh_training.domain.ports import Beat, Claim, Page
from twinmesh_training.domain.values import (
    ErasedTwin,
    Evaluation,
    Family,
    Golden,
    Lineage,
    LogPosition,
    Metric,
    Model,
    Run,
    RunState,
    Signature,
    Stage,
    Task,
    TrainingSpec,
    Version,
)

_TIMEOUT_S: Final = 10.0
MOST_ATTEMPTS: Final = 2
"""A run whose worker died is taken once more; then it fails with a reason."""

Row = dict[str, Any]


class PostgresRegistry:
    """See `twinmesh_training.domain.ports.Registry`; the pool's schema is ``training``."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_run(self, tenant: str, run: Run, request_id: str, digest: str) -> Run:
        """Queue a run, once per request_id."""
        values = {
            "tenant": tenant,
            "run_id": run.run_id,
            "request_id": request_id,
            "digest": digest,
            "model_id": run.spec.model_id,
            "spec": Jsonb(to_plain(run.spec)),
            "phase": "queued",
        }
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            if request_id:
                before = await _one(cursor, sql.RUN_BY_REQUEST, values)
                if before is not None:
                    return _replayed(before, digest)
            model = await _one(cursor, sql.MODEL_TASK, values)
            if model is not None and model["task"] != run.spec.task:
                raise faults.model_has_task(run.spec.model_id, Task(model["task"]), run.spec.task)
            row = await _one(cursor, sql.INSERT_RUN, values)
            if row is None:  # another call with this request_id was faster
                return _replayed(await _the(cursor, sql.RUN_BY_REQUEST, values), digest)
            return _run(row)

    async def run(self, tenant: str, run_id: str) -> Run:
        """Return a run."""
        rows = await self._rows(sql.GET_RUN, {"tenant": tenant, "run_id": run_id})
        if not rows:
            raise faults.run_not_found(run_id)
        return _run(rows[0])

    async def runs(self, tenant: str, model_id: str, page: Page) -> tuple[Run, ...]:
        """Return runs, newest first."""
        values = {"tenant": tenant, "model_id": model_id, "after": page.after, "size": page.size}
        return tuple(_run(row) for row in await self._rows(sql.LIST_RUNS, values))

    async def changed_runs(self, tenants_and_ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Run]:
        """Return the present state of many runs in one query."""
        values = {"tenants": [t for t, _ in tenants_and_ids], "run_ids": [r for _, r in tenants_and_ids]}
        return {(row["tenant"], row["run_id"]): _run(row) for row in await self._rows(sql.GET_RUNS, values)}

    async def cancel_run(self, tenant: str, run_id: str) -> Run:
        """Cancel a queued run, or ask the worker of a running one."""
        values = {"tenant": tenant, "run_id": run_id}
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            # Queued first: a worker that takes it in between is then found by the second statement.
            for statement in (sql.CANCEL_QUEUED, sql.CANCEL_RUNNING):
                row = await _one(cursor, statement, values)
                if row is not None:
                    return _run(row)
            if await _one(cursor, sql.GET_RUN, values) is None:
                raise faults.run_not_found(run_id)
            raise faults.run_ended(run_id)

    async def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Take the oldest run that waits or was lost by its worker."""
        values = {"owner": owner, "lease_s": lease_s, "most_attempts": MOST_ATTEMPTS}
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(sql.CLOSE_ABANDONED, values)
            row = await _one(cursor, sql.CLAIM, values)
        return None if row is None else Claim(tenant=row["tenant"], run=_run(row), attempt=row["attempt"])

    async def beat(self, claim: Claim, owner: str, lease_s: float, progress: float, phase: str, windows: int) -> Beat:
        """Extend the lease and record progress."""
        values = {
            **_holder(claim, owner),
            "lease_s": lease_s,
            "progress": progress,
            "phase": phase,
            "windows": windows,
        }
        rows = await self._rows(sql.BEAT, values)
        return Beat(held=bool(rows), cancel=bool(rows) and rows[0]["cancel_requested"])

    async def finish(self, claim: Claim, owner: str, run: Run, versions: Sequence[Version], promote: int) -> Run | None:
        """End the run and register its versions in one transaction."""
        holder = _holder(claim, owner)
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            held = await _one(cursor, sql.LOCK_HELD, holder)
            if held is None:
                return None
            if held["cancel_requested"]:
                # The caller was told that it will end: nothing of it may appear any more.
                run, versions, promote = cancelled(run), (), 0
            first = await _register(cursor, claim.tenant, versions) if versions else 0
            if promote:
                key = {"tenant": claim.tenant, "model_id": versions[0].model_id, "version": first + promote - 1}
                if (await _the(cursor, sql.IS_ERASED, key))["erased"]:
                    promote = 0
                else:
                    await _point(cursor, claim.tenant, versions[0].model_id, first + promote - 1)
            if versions:
                await cursor.execute(sql.EMPTY_GOLDEN, {"tenants": [claim.tenant]})
            values = {
                **holder,
                "state": int(run.state),
                "progress": run.progress,
                "phase": run.phase,
                "error_reason": run.error_reason,
                "error_message": run.error_message,
                "evaluations": Jsonb(to_plain(numbered(run.evaluations, first))),
                "promoted_version": first + promote - 1 if promote else 0,
                "windows": run.train_window_count,
            }
            return _run(await _the(cursor, sql.FINISH, values))

    async def give_back(self, owner: str) -> int:
        """End the leases of a dead worker."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            return (await conn.execute(sql.GIVE_BACK, {"owner": owner})).rowcount

    async def requeue(self, claim: Claim, owner: str) -> None:
        """Put a run back untouched."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            await conn.execute(sql.REQUEUE, _holder(claim, owner))

    async def models(self, tenant: str, size: int, after: str) -> tuple[Model, ...]:
        """Return models by id."""
        rows = await self._rows(sql.LIST_MODELS, {"tenant": tenant, "size": size, "after": after})
        return tuple(Model(**{**row, "task": Task(row["task"])}) for row in rows)

    async def versions(
        self, tenant: str, model_id: str, stage: Stage | None, page: Page, *, golden: bool
    ) -> tuple[tuple[int, Version], ...]:
        """Return versions, newest first."""
        values = {
            "tenant": tenant,
            "model_id": model_id,
            "stage": int(stage or 0),
            "after": page.after,
            "size": page.size,
        }
        rows = await self._rows(sql.LIST_VERSIONS_WITH_GOLDEN if golden else sql.LIST_VERSIONS, values)
        return tuple((row["number"], _version(row)) for row in rows)

    async def version(self, tenant: str, model_id: str, version: int) -> Version:
        """Return a version, 0 = the one in production."""
        rows = await self._rows(sql.GET_VERSION, {"tenant": tenant, "model_id": model_id, "version": version})
        if not rows:
            raise faults.version_not_found(model_id, version)
        return _version(rows[0])

    async def promote(self, tenant: str, model_id: str, version: int, *, force: bool) -> Version:
        """Make a version the one that serves."""
        values = {"tenant": tenant, "model_id": model_id, "version": version}
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            if await _one(cursor, sql.LOCK_MODEL, values) is None or version < 1:
                raise faults.version_not_found(model_id, version)
            row = await _one(cursor, sql.GET_VERSION, values)
            if row is None:
                raise faults.version_not_found(model_id, version)
            found = _version(row)
            if found.stage is not Stage.PRODUCTION:
                if found.erased_twin_ids:
                    raise faults.data_erased(model_id, version, found.erased_twin_ids)
                if not found.passed_gate and not force:
                    raise faults.gate_not_passed(model_id, version)
                await _point(cursor, tenant, model_id, version)
            return _version(await _the(cursor, sql.GET_VERSION, values))

    async def followed(self) -> LogPosition:
        """Return up to where the log was looked through for erased twins."""
        rows = await self._rows(sql.FOLLOWED, {})
        return LogPosition(
            incarnation=rows[0]["incarnation"] if rows else "", offset=rows[0]["log_offset"] if rows else 0
        )

    async def note(self, erased: Sequence[ErasedTwin], through: LogPosition) -> None:
        """Note erased twins, and up to where the log was looked through, in one transaction."""
        values = {
            "incarnation": through.incarnation,
            "offset": through.offset,
            "tenants": [twin.tenant for twin in erased],
            "twin_ids": [twin.twin_id for twin in erased],
            "offsets": [twin.offset for twin in erased],
        }
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            if erased:
                await conn.execute(sql.NOTE_ERASED, values)
                await conn.execute(sql.EMPTY_GOLDEN, values)
            await conn.execute(sql.NOTE_FOLLOWED, values)

    async def _rows(self, statement: str, values: Row) -> list[Row]:
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement, values)
            return await cursor.fetchall()


def numbered(evaluations: tuple[Evaluation, ...], first: int) -> tuple[Evaluation, ...]:
    """Return evaluations that name versions by number instead of by position; `first` 0 = none was registered."""
    return tuple(
        Evaluation(
            family=e.family,
            metrics=e.metrics,
            origin_count=e.origin_count,
            model_version=first + e.model_version - 1 if e.model_version and first else 0,
        )
        for e in evaluations
    )


def cancelled(run: Run) -> Run:
    """Return the run as it ends when it was cancelled."""
    return Run(run_id=run.run_id, spec=run.spec, state=RunState.CANCELLED, progress=run.progress, phase="cancelled")


def _holder(claim: Claim, owner: str) -> Row:
    return {"tenant": claim.tenant, "run_id": claim.run.run_id, "owner": owner, "attempt": claim.attempt}


async def _one(cursor: psycopg.AsyncCursor[Row], statement: str, values: Row) -> Row | None:
    await cursor.execute(statement, values)
    return await cursor.fetchone()


async def _the(cursor: psycopg.AsyncCursor[Row], statement: str, values: Row) -> Row:
    row = await _one(cursor, statement, values)
    if row is None:
        raise LookupError("a row that this transaction holds is gone")
    return row


async def _register(cursor: psycopg.AsyncCursor[Row], tenant: str, versions: Sequence[Version]) -> int:
    """Insert the versions under the next numbers; return the first. The model's row serialises registrations."""
    key = {"tenant": tenant, "model_id": versions[0].model_id}
    task = versions[0].task
    await cursor.execute(sql.ENSURE_MODEL, {**key, "task": int(task)})
    model = await _the(cursor, sql.LOCK_MODEL, key)
    if model["task"] != task:
        raise faults.model_has_task(versions[0].model_id, Task(model["task"]), task)
    first: int = model["latest_version"] + 1
    for index, version in enumerate(versions):
        await cursor.execute(sql.INSERT_VERSION, _version_values(tenant, version, first + index))
    await cursor.execute(sql.SET_LATEST, {**key, "latest": first + len(versions) - 1})
    return first


async def _point(cursor: psycopg.AsyncCursor[Row], tenant: str, model_id: str, version: int) -> None:
    """Move production to a version; the model's row is locked by the caller."""
    values = {"tenant": tenant, "model_id": model_id, "version": version}
    for statement in (sql.RETIRE, sql.SET_PRODUCTION, sql.POINT_PRODUCTION):
        await cursor.execute(statement, values)
    await cursor.execute(sql.EMPTY_GOLDEN, {"tenants": [tenant]})


def _version_values(tenant: str, version: Version, number: int) -> Row:
    golden = version.golden or Golden(rows=0, window=b"", calendar=b"", future=b"", quantiles=b"", tolerance=0.0)
    return {
        "tenant": tenant,
        "model_id": version.model_id,
        "version": number,
        "task": int(version.task),
        "family": int(version.family),
        "signature": Jsonb(to_plain(version.signature)),
        "metrics": Jsonb(to_plain(version.metrics)),
        "lineage": Jsonb(to_plain(version.lineage)),
        "artifact_sha256": version.artifact_sha256,
        "artifact_bytes": version.artifact_bytes,
        "passed_gate": version.passed_gate,
        "golden_rows": golden.rows,
        "golden_tolerance": golden.tolerance,
        "golden_window": golden.window,
        "golden_calendar": golden.calendar,
        "golden_future": golden.future,
        "golden_quantiles": golden.quantiles,
    }


def _replayed(row: Row, digest: str) -> Run:
    if row["digest"] != digest:
        raise faults.request_id_reused()
    return _run(row)


def _run(row: Row) -> Run:
    return Run(
        run_id=row["run_id"],
        number=row["number"],
        spec=from_plain(TrainingSpec, row["spec"]),
        state=RunState(row["state"]),
        progress=row["progress"],
        phase=row["phase"],
        error_reason=row["error_reason"],
        error_message=row["error_message"],
        evaluations=tuple(from_plain(Evaluation, e) for e in row["evaluations"]),
        promoted_version=row["promoted_version"],
        create_time_us=row["create_time_us"],
        start_time_us=row["start_time_us"],
        end_time_us=row["end_time_us"],
        train_window_count=row["train_window_count"],
        revision=row["revision"],
        erased_twin_ids=tuple(row["erased_twin_ids"]),
    )


def _version(row: Row) -> Version:
    golden = None
    if row.get("golden_rows"):
        golden = Golden(
            rows=row["golden_rows"],
            window=row["golden_window"],
            calendar=row["golden_calendar"],
            future=row["golden_future"],
            quantiles=row["golden_quantiles"],
            tolerance=row["golden_tolerance"],
        )
    return Version(
        model_id=row["model_id"],
        version=row["version"],
        task=Task(row["task"]),
        family=Family(row["family"]),
        stage=Stage(row["stage"]),
        signature=from_plain(Signature, row["signature"]),
        metrics=tuple(from_plain(Metric, m) for m in row["metrics"]),
        lineage=from_plain(Lineage, row["lineage"]),
        artifact_sha256=row["artifact_sha256"],
        artifact_bytes=row["artifact_bytes"],
        create_time_us=row["create_time_us"],
        passed_gate=row["passed_gate"],
        golden=golden,
        erased_twin_ids=tuple(row["erased_twin_ids"]),
    )
