"""The `DeploymentStore` in PostgreSQL, schema ``inference``: what all replicas of this service agree on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from psycopg.types.json import Jsonb

from twinmesh_inference.domain.models import Deployment, DeploymentState, ModelTask, Pointer, Signature
from twinmesh_runtime.postgres import Pool, connection

_TIMEOUT_S: Final = 5.0

_ACQUIRE: Final = """
    INSERT INTO lease AS l (tenant, holder, expires_at)
    VALUES (%(tenant)s, %(holder)s, clock_timestamp() + make_interval(secs => %(ttl_s)s))
    ON CONFLICT (tenant) DO UPDATE SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at
    WHERE l.holder = EXCLUDED.holder OR l.expires_at <= clock_timestamp()
    RETURNING holder
"""
_RELEASE: Final = "DELETE FROM lease WHERE tenant = %(tenant)s AND holder = %(holder)s"
_DEPLOYMENTS: Final = """
    SELECT model_id, version, task, signature, twin_ids, artifact_sha256, state, message, ready_time_us
    FROM deployment WHERE tenant = %(tenant)s ORDER BY model_id COLLATE "C", version DESC
"""
_POINTERS: Final = """
    SELECT model_id, serving, previous FROM pointer WHERE tenant = %(tenant)s ORDER BY model_id COLLATE "C"
"""
_PUT: Final = """
    INSERT INTO deployment
        (tenant, model_id, version, task, signature, twin_ids, artifact_sha256, state, message, ready_time_us)
    VALUES
        (%(tenant)s, %(model_id)s, %(version)s, %(task)s, %(signature)s, %(twin_ids)s, %(artifact_sha256)s, %(state)s,
         %(message)s, %(ready_time_us)s)
    ON CONFLICT (tenant, model_id, version) DO UPDATE SET
        task = EXCLUDED.task, signature = EXCLUDED.signature, twin_ids = EXCLUDED.twin_ids,
        artifact_sha256 = EXCLUDED.artifact_sha256, state = EXCLUDED.state, message = EXCLUDED.message,
        ready_time_us = EXCLUDED.ready_time_us
"""
_REMOVE: Final = """
    DELETE FROM deployment WHERE tenant = %(tenant)s AND model_id = %(model_id)s AND version = %(version)s
"""
_MOVE: Final = """
    INSERT INTO pointer AS p (tenant, model_id, serving, previous)
    VALUES (%(tenant)s, %(model_id)s, %(version)s, 0)
    ON CONFLICT (tenant, model_id) DO UPDATE SET
        previous = CASE WHEN p.serving = EXCLUDED.serving THEN p.previous ELSE p.serving END,
        serving = EXCLUDED.serving
    RETURNING model_id, serving, previous
"""


class PostgresDeploymentStore:
    """Deployments, traffic pointers and leases; see `DeploymentStore`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def acquire_lease(self, tenant: str, holder: str, ttl_s: float) -> bool:
        """Take or renew the right to reconcile a tenant; False while another holder has it."""
        return bool(await self._execute(_ACQUIRE, {"tenant": tenant, "holder": holder, "ttl_s": ttl_s}))

    async def release_lease(self, tenant: str, holder: str) -> None:
        """Give the right back, if this holder has it."""
        await self._execute(_RELEASE, {"tenant": tenant, "holder": holder})

    async def deployments(self, tenant: str) -> tuple[Deployment, ...]:
        """Return all deployments, by model, newest version first."""
        rows = await self._execute(_DEPLOYMENTS, {"tenant": tenant})
        return tuple(
            Deployment(
                model_id=row[0],
                version=row[1],
                task=ModelTask(row[2]),
                signature=_signature(row[3]),
                twin_ids=tuple(row[4]),
                artifact_sha256=row[5],
                state=DeploymentState(row[6]),
                message=row[7],
                ready_time_us=row[8],
            )
            for row in rows
        )

    async def pointers(self, tenant: str) -> tuple[Pointer, ...]:
        """Return all traffic pointers, by model."""
        rows = await self._execute(_POINTERS, {"tenant": tenant})
        return tuple(Pointer(model_id=row[0], serving=row[1], previous=row[2]) for row in rows)

    async def put_deployment(self, tenant: str, deployment: Deployment) -> None:
        """Insert or replace one deployment."""
        await self._execute(
            _PUT,
            {
                "tenant": tenant,
                "model_id": deployment.model_id,
                "version": deployment.version,
                "task": str(deployment.task),
                "signature": Jsonb(asdict(deployment.signature)),
                "twin_ids": list(deployment.twin_ids),
                "artifact_sha256": deployment.artifact_sha256,
                "state": str(deployment.state),
                "message": deployment.message,
                "ready_time_us": deployment.ready_time_us,
            },
        )

    async def remove_deployment(self, tenant: str, model_id: str, version: int) -> None:
        """Forget one deployment; no error if there is none."""
        await self._execute(_REMOVE, {"tenant": tenant, "model_id": model_id, "version": version})

    async def move_pointer(self, tenant: str, model_id: str, version: int) -> Pointer:
        """Send a model's unpinned calls to `version` and return the pointer; see `DeploymentStore`."""
        rows = await self._execute(_MOVE, {"tenant": tenant, "model_id": model_id, "version": version})
        return Pointer(model_id=rows[0][0], serving=rows[0][1], previous=rows[0][2])

    async def _execute(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            cursor = await conn.execute(statement, values)
            return await cursor.fetchall() if cursor.description is not None else []


def _signature(stored: dict[str, Any]) -> Signature:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return Signature(**values)
