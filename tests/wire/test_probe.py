"""The container health check asks a real server, under the two names that the deployments use."""

import asyncio

import pytest

from twinmesh_runtime.probe import main
from twinmesh_runtime.service import Service
from twinmesh_testing.inprocess import serve_server


@pytest.mark.parametrize("name", ["live", "ready"])
async def test_a_ready_service_passes(name: str) -> None:
    async with serve_server(Service(register=lambda _: None, service_names=())) as (_, target):
        assert await asyncio.to_thread(main, [target, name]) == 0


async def test_a_draining_service_lives_but_is_not_ready() -> None:
    async with serve_server(Service(register=lambda _: None, service_names=())) as (server, target):
        server.health.set_ready(False)
        assert await asyncio.to_thread(main, [target, "live"]) == 0
        assert await asyncio.to_thread(main, [target, "ready"]) == 1


async def test_an_unknown_name_fails() -> None:
    async with serve_server(Service(register=lambda _: None, service_names=())) as (_, target):
        assert await asyncio.to_thread(main, [target, "redy"]) == 1


def test_nobody_there_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:1", "ready"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_a_wrong_call_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "HOST:PORT" in capsys.readouterr().err
