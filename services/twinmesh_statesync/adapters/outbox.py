"""Subscriptions and what is on its way to them, in PostgreSQL, schema `statesync`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from psycopg.rows import dict_row

from twinmesh_core.errors import AlreadyExists, NotFound, Reason, ResourceExhausted
from twinmesh_core.ids import quoted
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.delivery.notices import NoticeKind
from twinmesh_statesync.domain.delivery.ports import Rotate
from twinmesh_statesync.domain.delivery.subscriptions import (
    MAX_SUBSCRIPTIONS,
    Delivery,
    Status,
    Subscription,
    Target,
    Wanted,
)

MAX_DEAD: Final = 1_000
"""Deliveries given up that are kept per subscription."""
_TIMEOUT_S: Final = 10.0
_ADD: Final = """
    INSERT INTO subscription (tenant, subscription_id, request_id, url, secret, topic, username, password, wanted,
                              retry_for_us, description, created_by, create_unix_us, incarnation, log_offset)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
_LOCK_TENANT: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_COUNT: Final = "SELECT count(*) AS number FROM subscription WHERE tenant = %s"
_FIND: Final = "SELECT * FROM subscription WHERE tenant = %s AND subscription_id = %s"
_OF_TENANT: Final = "SELECT * FROM subscription WHERE tenant = %s ORDER BY subscription_id"
_ALL: Final = "SELECT * FROM subscription ORDER BY tenant, subscription_id"
_DELETE: Final = "DELETE FROM subscription WHERE tenant = %s AND subscription_id = %s"
_ON_THE_WAY: Final = """
    SELECT subscription_id, count(*) FILTER (WHERE NOT dead) AS pending, count(*) FILTER (WHERE dead) AS dead,
           coalesce(min(create_unix_us) FILTER (WHERE NOT dead), 0) AS oldest
    FROM delivery WHERE tenant = %s GROUP BY subscription_id
"""
_MOVE: Final = """
    UPDATE subscription SET incarnation = %s, log_offset = %s, missed = missed + %s
    WHERE tenant = %s AND subscription_id = %s AND incarnation = %s AND log_offset = %s
"""
_ENQUEUE: Final = """
    INSERT INTO delivery (tenant, subscription_id, delivery_id, place, subject, twin_id, body, tells_of_failure,
                          create_unix_us, next_unix_us)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
_OVERFLOW: Final = """
    WITH gone AS (
        UPDATE delivery SET dead = true WHERE (tenant, subscription_id, delivery_id) IN (
            SELECT tenant, subscription_id, delivery_id FROM delivery
            WHERE tenant = %(tenant)s AND subscription_id = %(id)s AND NOT dead ORDER BY sequence DESC OFFSET %(most)s)
        RETURNING 1)
    UPDATE subscription SET given_up = given_up + (SELECT count(*) FROM gone), last_error = 'too many were waiting'
    WHERE tenant = %(tenant)s AND subscription_id = %(id)s AND EXISTS (SELECT 1 FROM gone)
"""
_BURY: Final = """
    DELETE FROM delivery WHERE (tenant, subscription_id, delivery_id) IN (
        SELECT tenant, subscription_id, delivery_id FROM delivery
        WHERE tenant = %s AND subscription_id = %s AND dead ORDER BY sequence DESC OFFSET %s)
"""
_WAITING: Final = "SELECT DISTINCT tenant, subscription_id FROM delivery WHERE NOT dead AND next_unix_us <= %s"
_DUE: Final = """
    SELECT delivery_id, place, subject, twin_id, body, attempts, create_unix_us, tells_of_failure FROM delivery d
    WHERE tenant = %(tenant)s AND subscription_id = %(id)s AND NOT dead AND next_unix_us <= %(now)s AND NOT EXISTS (
        SELECT 1 FROM delivery e
        WHERE e.tenant = d.tenant AND e.subscription_id = d.subscription_id AND e.subject = d.subject
        AND NOT e.dead AND e.sequence < d.sequence)
    ORDER BY sequence LIMIT %(limit)s
"""
_TAKEN: Final = "DELETE FROM delivery WHERE tenant = %s AND subscription_id = %s AND delivery_id = %s"
_SUCCESS: Final = """
    UPDATE subscription SET delivered = delivered + 1, last_success_unix_us = %s
    WHERE tenant = %s AND subscription_id = %s
"""
_NOT_TAKEN: Final = """
    UPDATE delivery SET attempts = attempts + 1, next_unix_us = %s, dead = %s
    WHERE tenant = %s AND subscription_id = %s AND delivery_id = %s
"""
_FAILURE: Final = """
    UPDATE subscription SET failed_attempts = failed_attempts + 1, given_up = given_up + %s, last_failure_unix_us = %s,
                            last_error = %s
    WHERE tenant = %s AND subscription_id = %s
"""
_ROTATE: Final = """
    UPDATE subscription SET secret = %s, previous_secret = %s, previous_until_unix_us = %s, rotate_request_id = %s
    WHERE tenant = %s AND subscription_id = %s
"""
_REVIVE: Final = """
    UPDATE delivery SET dead = false, attempts = 0, create_unix_us = %s, next_unix_us = %s
    WHERE tenant = %s AND subscription_id = %s AND dead
"""
_FORGET: Final = """DELETE FROM delivery WHERE tenant = %s AND twin_id = %s AND place COLLATE "C" < %s"""
_TOTALS: Final = """
    SELECT count(*) FILTER (WHERE NOT dead) AS pending, count(*) FILTER (WHERE dead) AS dead FROM delivery
"""


class PostgresOutbox:
    """Keeps subscriptions and deliveries in the schema that the pool's search path names.

    Args:
        pool: open pool on migrated tables.
        max_pending: deliveries that may wait for one subscription; of more the oldest are given up.
    """

    def __init__(self, pool: Pool, *, max_pending: int = 10_000) -> None:
        self._pool = pool
        self._max_pending = max_pending

    async def create(self, subscription: Subscription, *, request_id: str) -> Subscription:
        """Keep a new subscription; see the port."""
        s, t = subscription, subscription.target
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_LOCK_TENANT, (f"subscriptions of {s.tenant}",))
            await cursor.execute(_FIND, (s.tenant, s.subscription_id))
            known = await cursor.fetchone()
            if known is not None:
                if known["request_id"] == request_id:
                    return _subscription(known)
                raise AlreadyExists(
                    f"Subscription {quoted(s.subscription_id)} exists; delete it first, or choose another id."
                )
            count = await (await cursor.execute(_COUNT, (s.tenant,))).fetchone()
            if count is not None and count["number"] >= MAX_SUBSCRIPTIONS:
                raise ResourceExhausted(f"There are {MAX_SUBSCRIPTIONS} subscriptions, the most there can be.")
            await cursor.execute(
                _ADD,
                (s.tenant, s.subscription_id, request_id, t.url, t.secret, t.topic, t.username, t.password,
                 _wanted_text(s.wanted), s.retry_for_us, s.description, s.created_by, s.create_unix_us,
                 s.through.incarnation, s.through.offset),
            )  # fmt: skip
        return subscription

    async def get(self, tenant: str, subscription_id: str) -> Subscription:
        """Return a subscription; see the port."""
        for subscription in await self._read(_FIND, (tenant, subscription_id), tenant):
            return subscription
        raise _not_found(subscription_id)

    async def of_tenant(self, tenant: str) -> list[Subscription]:
        """Return the subscriptions of a tenant; see the port."""
        return await self._read(_OF_TENANT, (tenant,), tenant)

    async def all(self) -> list[Subscription]:
        """Return all subscriptions; see the port."""
        return await self._read(_ALL, (), None)

    async def delete(self, tenant: str, subscription_id: str) -> None:
        """Forget a subscription; see the port."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            if not (await conn.execute(_DELETE, (tenant, subscription_id))).rowcount:
                raise _not_found(subscription_id)

    async def rotate(self, tenant: str, subscription_id: str, rotate: Rotate, *, request_id: str) -> Target:
        """Replace a subscription's secret; see the port."""
        key = (tenant, subscription_id)
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            known = await (await cursor.execute(_FIND + " FOR UPDATE", key)).fetchone()
            if known is None:
                raise _not_found(subscription_id)
            target = _subscription(known).target
            if known["rotate_request_id"] == request_id:
                return target
            made = rotate(target)
            secrets = (made.secret, made.previous_secret, made.previous_until_unix_us)
            await cursor.execute(_ROTATE, (*secrets, request_id, *key))
        return made

    async def revive(self, tenant: str, subscription_id: str, *, now_unix_us: int) -> int:
        """Try again what was given up; see the port."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            return (await conn.execute(_REVIVE, (now_unix_us, now_unix_us, tenant, subscription_id))).rowcount

    async def take_up(
        self, subscription: Subscription, through: Position, deliveries: Sequence[Delivery], *, missed: int = 0
    ) -> bool:
        """Add deliveries and move the cursor; see the port."""
        key, kept = (subscription.tenant, subscription.subscription_id), subscription.through
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            moved = await conn.execute(
                _MOVE, (through.incarnation, through.offset, missed, *key, kept.incarnation, kept.offset)
            )
            if not moved.rowcount:
                return False
            if deliveries:
                rows = [
                    (d.tenant, d.subscription_id, d.delivery_id, d.place, d.subject, d.twin_id, d.body,
                     d.tells_of_failure, d.create_unix_us, d.create_unix_us)
                    for d in deliveries
                ]  # fmt: skip
                await conn.cursor().executemany(_ENQUEUE, rows)
                await conn.execute(_OVERFLOW, {"tenant": key[0], "id": key[1], "most": self._max_pending})
                await conn.execute(_BURY, (*key, MAX_DEAD))
        return True

    async def waiting(self, now_unix_us: int) -> list[tuple[str, str]]:
        """Return who has deliveries that are due; see the port."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            rows = await (await conn.execute(_WAITING, (now_unix_us,))).fetchall()
        return [(tenant, subscription_id) for tenant, subscription_id in rows]

    async def due(self, tenant: str, subscription_id: str, now_unix_us: int, limit: int) -> list[Delivery]:
        """Return deliveries that are due; see the port."""
        terms = {"tenant": tenant, "id": subscription_id, "now": now_unix_us, "limit": limit}
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            rows = await (await cursor.execute(_DUE, terms)).fetchall()
        return [Delivery(tenant=tenant, subscription_id=subscription_id, **row) for row in rows]

    async def delivered(self, delivery: Delivery, now_unix_us: int) -> None:
        """Forget a delivery that was taken; see the port."""
        key = (delivery.tenant, delivery.subscription_id)
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            if (await conn.execute(_TAKEN, (*key, delivery.delivery_id))).rowcount:
                await conn.execute(_SUCCESS, (now_unix_us, *key))

    async def failed(self, delivery: Delivery, error: str, now_unix_us: int, next_unix_us: int | None) -> None:
        """Note a failed attempt; see the port."""
        key, over = (delivery.tenant, delivery.subscription_id), next_unix_us is None
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            await conn.execute(_NOT_TAKEN, (next_unix_us or now_unix_us, over, *key, delivery.delivery_id))
            await conn.execute(_FAILURE, (int(over), now_unix_us, error[:500], *key))
            if over:
                await conn.execute(_BURY, (*key, MAX_DEAD))

    async def forget(self, tenant: str, twin_id: str, place: str) -> None:
        """Forget what is about an erased twin; see the port."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            await conn.execute(_FORGET, (tenant, twin_id, place))

    async def totals(self) -> tuple[int, int]:
        """Return how many wait and how many are dead; see the port."""
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn:
            row = await (await conn.execute(_TOTALS)).fetchone()
        return (row[0], row[1]) if row is not None else (0, 0)

    async def _read(self, statement: str, terms: tuple[str, ...], tenant: str | None) -> list[Subscription]:
        async with connection(self._pool, timeout_s=_TIMEOUT_S) as conn, conn.cursor(row_factory=dict_row) as cursor:
            rows = await (await cursor.execute(statement, terms)).fetchall()
            counts: dict[str, dict[str, Any]] = {}
            if tenant is not None:
                found = await (await cursor.execute(_ON_THE_WAY, (tenant,))).fetchall()
                counts = {row["subscription_id"]: row for row in found}
        return [_subscription(row, counts.get(row["subscription_id"])) for row in rows]


def _subscription(row: dict[str, Any], counts: dict[str, Any] | None = None) -> Subscription:
    counts = counts or {}
    return Subscription(
        tenant=row["tenant"],
        subscription_id=row["subscription_id"],
        target=Target(
            url=row["url"],
            secret=row["secret"],
            topic=row["topic"],
            username=row["username"],
            password=row["password"],
            previous_secret=row["previous_secret"],
            previous_until_unix_us=row["previous_until_unix_us"],
        ),
        wanted=_wanted(row["wanted"]),
        retry_for_us=row["retry_for_us"],
        description=row["description"],
        created_by=row["created_by"],
        create_unix_us=row["create_unix_us"],
        through=Position(incarnation=row["incarnation"], offset=row["log_offset"]),
        status=Status(
            pending=counts.get("pending", 0),
            dead=counts.get("dead", 0),
            delivered=row["delivered"],
            failed_attempts=row["failed_attempts"],
            given_up=row["given_up"],
            last_success_unix_us=row["last_success_unix_us"],
            last_failure_unix_us=row["last_failure_unix_us"],
            last_error=row["last_error"],
            oldest_pending_unix_us=counts.get("oldest", 0),
            missed=row["missed"],
        ),
    )


def _wanted_text(wanted: Wanted) -> str:
    return json.dumps(
        {
            "kinds": [int(kind) for kind in wanted.kinds],
            "min_severity": wanted.min_severity,
            "twin_type_id": wanted.twin_type_id,
            "twin_ids": sorted(wanted.twin_ids),
        }
    )


def _wanted(kept: dict[str, Any]) -> Wanted:
    return Wanted(
        kinds=tuple(NoticeKind(kind) for kind in kept["kinds"]),
        min_severity=kept["min_severity"],
        twin_type_id=kept["twin_type_id"],
        twin_ids=frozenset(kept["twin_ids"]),
    )


def _not_found(subscription_id: str) -> NotFound:
    return NotFound(
        f"There is no subscription {quoted(subscription_id)}; list them with ListSubscriptions.",
        reason=Reason.SUBSCRIPTION_NOT_FOUND,
    )
