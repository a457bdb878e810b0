"""Numbered SQL, applied once each and in order: ``<package>/migrations/0001_name.sql``, ``0002_...``.

Any number of processes may start at once: an advisory lock makes them take turns, and each file runs in one transaction
together with the row that records it. A recorded file must never change; its checksum is compared at every start.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, sql

from twinmesh_core.errors import FailedPrecondition, Unavailable
from twinmesh_runtime.logs import log

START_TIMEOUT_S: Final = 60.0
"""How long a database that is still starting is waited for."""
_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_LOCK_SPACE: Final = 0x7477696E  # "twin": keeps our advisory locks apart from other programs'


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered file: its number (1, 2, ... without gaps), name, statements and their SHA-256."""

    number: int
    name: str
    statements: str
    sha256: str


def read_migrations(package: str) -> tuple[Migration, ...]:
    """Return the migrations of `package`, in order.

    Raises:
        FailedPrecondition: there are none, or the numbers have a gap or a duplicate.
    """
    folder = resources.files(package).joinpath("migrations")
    found = sorted((_read(file) for file in folder.iterdir() if _FILE.fullmatch(file.name)), key=lambda m: m.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)) or not found:
        raise FailedPrecondition(
            f"The migrations of {package} must be numbered 0001, 0002, ... without a gap; found "
            + (", ".join(migration.name for migration in found) or "none")
            + "."
        )
    return tuple(found)


async def migrate(url: str, schema: str, package: str, *, start_timeout_s: float = START_TIMEOUT_S) -> int:
    """Bring `schema` of the database at `url` to what `package` needs; returns how many files were applied.

    Waits for a database that is still starting. The files run with `schema` as their search path and need not name it.

    Args:
        url: libpq URL or conninfo.
        schema: the service's own schema, made if it does not exist.
        package: the package whose ``migrations`` folder holds the files.
        start_timeout_s: how long to wait for the database, and for another process that migrates.

    Raises:
        Unavailable: the database cannot be reached.
        FailedPrecondition: a file that was applied has changed, or the database is newer than this program.
    """
    migrations = read_migrations(package)
    applied = 0
    async with _connect(url, start_timeout_s) as conn:
        await _prepare(conn, schema, start_timeout_s)
        recorded = await _recorded(conn)
        _check(schema, migrations, recorded)
        for migration in migrations[len(recorded) :]:
            async with conn.transaction():
                await conn.execute(migration.statements.encode())
                await conn.execute(
                    "insert into migrations (number, name, sha256) values (%s, %s, %s)",
                    (migration.number, migration.name, migration.sha256),
                )
            applied += 1
            log("migrated", schema=schema, migration=migration.name)
    return applied


async def _prepare(conn: AsyncConnection[Any], schema: str, timeout_s: float) -> None:
    """Take the lock (until the connection closes), make the schema and the table of what was applied."""
    await conn.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(f"{round(timeout_s * 1e3)}ms")))
    try:
        await conn.execute("select pg_advisory_lock(%s, hashtext(%s))", (_LOCK_SPACE, schema))
    except psycopg.errors.LockNotAvailable:
        raise Unavailable(f"Another process has been migrating {schema} for {timeout_s:g} s.") from None
    await conn.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
    await conn.execute(sql.SQL("set search_path = {}").format(sql.Identifier(schema)))
    await conn.execute(
        """
        create table if not exists migrations (
            number      integer     primary key,
            name        text        not null,
            sha256      text        not null,
            applied_at  timestamptz not null default now()
        )
        """
    )


async def _recorded(conn: AsyncConnection[Any]) -> list[tuple[int, str, str]]:
    rows = await conn.execute("select number, name, sha256 from migrations order by number")
    return [(int(number), str(name), str(sha256)) for number, name, sha256 in await rows.fetchall()]


def _check(schema: str, migrations: tuple[Migration, ...], recorded: list[tuple[int, str, str]]) -> None:
    if len(recorded) > len(migrations):
        raise FailedPrecondition(
            f"The database schema {schema} is at migration {recorded[-1][1]} and this program knows only "
            f"{migrations[-1].name}; run the newer program."
        )
    for migration, (_, name, sha256) in zip(migrations, recorded, strict=False):
        if migration.sha256 != sha256:
            raise FailedPrecondition(
                f"Migration {migration.name} of {schema} was changed after it was applied as {name}; "
                "put it back and add a new file instead."
            )


def _read(file: Traversable) -> Migration:
    statements = file.read_text(encoding="utf-8")
    return Migration(
        number=int(file.name[:4]),
        name=file.name.removesuffix(".sql"),
        statements=statements,
        sha256=hashlib.sha256(statements.encode()).hexdigest(),
    )


@asynccontextmanager
async def _connect(url: str, timeout_s: float) -> AsyncIterator[AsyncConnection[Any]]:
    """Connect, trying again while the database starts; closed at the end, which also releases the lock."""
    end = asyncio.get_running_loop().time() + timeout_s
    pauses = itertools.chain((0.1, 0.2, 0.4, 0.8), itertools.repeat(1.5))
    while (conn := await _attempt(url)) is None:
        pause_s = next(pauses)
        if asyncio.get_running_loop().time() + pause_s > end:
            raise Unavailable(
                f"The database did not answer within {timeout_s:g} s; check that it runs and that the URL names it."
            )
        log("waiting_for_database", level="warning", pause_s=pause_s)
        await asyncio.sleep(pause_s)
    async with conn:
        yield conn


async def _attempt(url: str) -> AsyncConnection[Any] | None:
    try:
        return await AsyncConnection.connect(url, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError:
        return None
