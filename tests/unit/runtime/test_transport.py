"""The client's side: what a channel retries, where it dials, and how time shrinks on the way inward."""

import json
from importlib import import_module
from typing import Any

import pytest
from tests.unit.runtime.echo import EchoStub, echo_service, text

from twinmesh_client import transport
from twinmesh_client.transport import IDEMPOTENT_METHODS, call, open_channel, service_config
from twinmesh_core.call_context import CallContext, enter_call
from twinmesh_core.errors import DeadlineExceeded
from twinmesh_testing.inprocess import serve

READ_PREFIXES = ("Get", "List", "Read", "Aggregate", "Downsample")
MODULES = ("mesh", "ingestion", "storage", "statesync", "training", "inference")


def services() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for token in MODULES:
        file: Any = import_module(f"twinmesh.{token}.v1.{token}_pb2").DESCRIPTOR
        found |= {service.full_name: service for service in file.services_by_name.values()}
    return found


def test_exactly_the_reads_of_the_protos_are_repeated() -> None:
    reads = {
        name: {method.name for method in service.methods if method.name.startswith(READ_PREFIXES)}
        for name, service in services().items()
    }
    listed = {name: set(methods) for name, methods in IDEMPOTENT_METHODS.items()}
    listed["twinmesh.training.v1.ModelService"].discard("DownloadArtifact")
    assert listed == {name: methods for name, methods in reads.items() if methods}


def test_the_service_config_is_what_grpc_expects() -> None:
    config = json.loads(service_config())
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["healthCheckConfig"] == {"serviceName": "ready"}
    [methods] = config["methodConfig"]
    assert {"service": "twinmesh.storage.v1.StorageService", "method": "ReadWindow"} in methods["name"]
    assert methods["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert methods["retryPolicy"]["maxAttempts"] <= 5, "gRPC allows no more"


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        ("storage:7401", "dns:///storage:7401"),
        ("dns:///storage:7401", "dns:///storage:7401"),
        ("10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
    ],
)
def test_targets(given: str, dialled: str) -> None:
    assert transport._resolvable(given) == dialled


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("127.0.0.1:7400", True),
        ("localhost:7400", True),
        ("[::1]:7400", True),
        ("dns:///127.0.0.1:7400", True),
        ("storage:7400", False),
        ("10.1.2.3:7400", False),
    ],
)
def test_a_proxy_is_never_used_for_this_machine(target: str, loopback: bool) -> None:
    assert transport._is_loopback(target) is loopback


async def test_no_call_starts_when_the_time_is_over() -> None:
    async with serve(echo_service()) as target, open_channel(target) as channel:
        enter_call(CallContext(deadline_s=0.0, request_id="r"))
        with pytest.raises(DeadlineExceeded):
            await call(EchoStub(channel).say, text("x"), timeout_s=5)


async def test_a_proxy_in_the_environment_does_not_catch_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    async with serve(echo_service()) as target, open_channel(target) as channel:
        assert (await call(EchoStub(channel).say, text("x"), timeout_s=5)).value == "x"
