"""Migrations on the real PostgreSQL: once each, in order, by one process at a time, and never changed afterwards."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from twinmesh_core.errors import FailedPrecondition, Unavailable
from twinmesh_runtime.postgres import migrate


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An importable package and its folder of migrations."""
    name = f"echo_{uuid4().hex}"
    folder = tmp_path / name / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield name, folder
    sys.modules.pop(name, None)


def write(folder: Path, name: str, statements: str) -> None:
    (folder / name).write_text(statements)


async def rows(url: str, query: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        return await (await conn.execute(query.encode())).fetchall()


async def test_each_file_is_applied_once_and_in_order(database_url: str, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_points.sql", "create table point (x integer);\ninsert into point values (1);")
    assert await migrate(database_url, "echo", name) == 1
    write(folder, "0002_more.sql", "insert into point select x + 1 from point; -- 100 % of them")
    (folder / "README.md").write_text("not a migration")
    assert await migrate(database_url, "echo", name) == 1
    assert await migrate(database_url, "echo", name) == 0
    assert await rows(database_url, "select x from echo.point order by x") == [(1,), (2,)]
    recorded = await rows(database_url, "select number, name from echo.migrations order by number")
    assert recorded == [(1, "0001_points"), (2, "0002_more")]


async def test_processes_that_start_together_take_turns(database_url: str, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_a.sql", "create table a (x integer); select pg_sleep(0.2);")
    write(folder, "0002_b.sql", "create table b (x integer);")
    applied = await asyncio.gather(*(migrate(database_url, "echo", name) for _ in range(5)))
    assert sorted(applied) == [0, 0, 0, 0, 2]


async def test_two_services_share_a_database(database_url: str, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_a.sql", "create table a (x integer);")
    assert await migrate(database_url, "one", name) == 1
    assert await migrate(database_url, "two", name) == 1
    assert await rows(database_url, "select count(*) from one.a, two.a") == [(0,)]


async def test_a_failing_file_leaves_nothing_of_itself(database_url: str, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_a.sql", "create table a (x integer);")
    write(folder, "0002_b.sql", "create table b (x integer); select 1/0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(database_url, "echo", name)
    assert await rows(database_url, "select number from echo.migrations") == [(1,)]
    assert await rows(database_url, "select to_regclass('echo.b') is null") == [(True,)]
    write(folder, "0002_b.sql", "create table b (x integer);")
    assert await migrate(database_url, "echo", name) == 1


async def test_a_changed_file_is_refused(database_url: str, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_a.sql", "create table a (x integer);")
    await migrate(database_url, "echo", name)
    write(folder, "0001_a.sql", "create table a (x bigint);")
    with pytest.raises(FailedPrecondition, match="0001_a of echo was changed"):
        await migrate(database_url, "echo", name)


async def test_a_newer_database_is_refused(database_url: str, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_a.sql", "select 1;")
    write(folder, "0002_b.sql", "select 2;")
    await migrate(database_url, "echo", name)
    (folder / "0002_b.sql").unlink()
    with pytest.raises(FailedPrecondition, match="run the newer program"):
        await migrate(database_url, "echo", name)


@pytest.mark.parametrize("names", [(), ("0002_b.sql",), ("0001_a.sql", "0003_c.sql"), ("0001_a.sql", "0001_b.sql")])
async def test_numbers_have_no_gap(names: tuple[str, ...], package: tuple[str, Path]) -> None:
    name, folder = package
    for file in names:
        write(folder, file, "select 1;")
    with pytest.raises(FailedPrecondition, match="without a gap"):
        await migrate("postgresql://u@127.0.0.1:1/d", "echo", name)


async def test_a_database_that_never_answers_is_unavailable(unused_tcp_port: int, package: tuple[str, Path]) -> None:
    name, folder = package
    write(folder, "0001_a.sql", "select 1;")
    with pytest.raises(Unavailable, match="did not answer within"):
        await migrate(f"postgresql://u@127.0.0.1:{unused_tcp_port}/d", "echo", name, start_timeout_s=0.5)
