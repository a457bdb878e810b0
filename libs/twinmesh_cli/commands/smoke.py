"""`smoke`: a short real loop against any mesh; its twin is deleted, one row in quarantine and one type stay."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from twinmesh_cli.errors import FAILED
from twinmesh_cli.output import Output
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.acks import WriteAck
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.aio.twin import Twin
    from twinmesh_client.replicas import WatchEvent

TYPE: Final = "twinmesh-smoke@1"
"""One type for all smoke tests: types are never deleted, twins are."""
CHECK_TIMEOUT_S: Final = 20.0
_VALUES: Final = 60


class CheckFailedError(Exception):
    """The mesh answered, but not what is right; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check found."""

    name: str
    passed: bool
    milliseconds: float
    detail: str


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    smoke = commands.add_parser(
        "smoke", parents=[common], help="a short real loop against a mesh; deletes its twin afterwards"
    )
    smoke.set_defaults(run=on_mesh(_smoke))


async def _smoke(mesh: Mesh, _arguments: Namespace, out: Output) -> int:
    loop = Loop(mesh)
    checks: list[Check] = []
    steps: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
        ("create a twin", loop.create),
        ("write", loop.write),
        ("read the write", loop.read),
        ("quarantine", loop.quarantine),
        ("watch", loop.watch),
        ("set a target", loop.direct),
        ("close the delta", loop.close_delta),
        ("models", loop.models),
    )
    try:
        for name, step in steps:
            checks.append(await _timed(name, step))
            _say(checks[-1], out)
            if not checks[-1].passed and name in ("create a twin", "write"):
                # What follows would only repeat this failure.
                break
    finally:
        if loop.created:
            checks.append(await _timed("delete the twin", loop.delete))
            _say(checks[-1], out)
    passed = all(c.passed for c in checks)
    out.line(f"{'the mesh works' if passed else 'FAILED'}: {sum(c.passed for c in checks)} of {len(checks)} checks")
    out.document({"passed": passed, "checks": checks})
    return 0 if passed else FAILED


async def _timed(name: str, step: Callable[[], Awaitable[str]]) -> Check:
    from twinmesh_core.errors import TwinmeshError

    began = time.perf_counter()
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            detail, passed = await step(), True
    except TimeoutError:
        detail, passed = f"no answer within {CHECK_TIMEOUT_S:g} s", False
    except (TwinmeshError, CheckFailedError) as error:
        detail, passed = str(error), False
    return Check(name=name, passed=passed, milliseconds=1e3 * (time.perf_counter() - began), detail=detail)


def _say(check: Check, out: Output) -> None:
    out.line(f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<16} {check.milliseconds:>8.1f} ms   {check.detail}")


class Loop:
    """The checks, in their order; each uses what the ones before made."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._name = f"smoke-{secrets.token_hex(6)}"
        self._twin: Twin = mesh.twins[self._name]
        self._ack: WriteAck | None = None
        self.created = False

    async def create(self) -> str:
        """A type and a twin of a name that nobody else has."""
        from twinmesh_client.modelling import channel, twin_type

        await self._mesh.types.create(
            twin_type(
                TYPE,
                [
                    channel("temperature", "Cel", minimum=-50, maximum=150),
                    channel("stage", kind="state", controllable=True),
                ],
                display_name="Made and used by `twinmesh smoke`",
            )
        )
        self._twin = await self._mesh.twins.create(self._name, type=TYPE)
        self.created = True
        return self._name

    async def write(self) -> str:
        """A minute of values, acknowledged after the commit."""
        import pandas as pd

        index = pd.date_range(datetime.now(UTC) - timedelta(seconds=_VALUES), periods=_VALUES, freq="1s", name="time")
        frame = pd.DataFrame({"temperature": [20.0 + i / 4 for i in range(_VALUES)], "stage": 1}, index=index)
        self._ack = await self._twin.write(frame)
        _expect(self._ack.accepted == 2 * _VALUES, f"accepted {self._ack.accepted} of {2 * _VALUES} values")
        return str(self._ack)

    async def read(self) -> str:
        """The same values, read at or after the write's own offset."""
        from twinmesh_client.readings import Reading

        assert self._ack is not None  # noqa: S101  the check before has set it
        answer = await self._twin.read("temperature", last="2min", min_offset=self._ack.offset)
        _expect(isinstance(answer, Reading), "rows were asked for")
        values = answer["temperature"].values.tolist() if isinstance(answer, Reading) and answer.series else []
        _expect(values == [20.0 + i / 4 for i in range(_VALUES)], f"{len(values)} of {_VALUES} values came back right")
        return f"{len(values)} values, as of offset {answer.as_of.offset:,}"

    async def quarantine(self) -> str:
        """A row of a twin that does not exist is kept aside with its remedy, and nothing else suffers."""
        ghost = f"{self._name}-ghost"
        ack = await self._mesh.twins[ghost].write_values({"temperature": 1.0})
        _expect((ack.accepted, ack.quarantined) == (0, 1), f"an unknown twin's row: {ack}")
        found = await self._mesh.quarantine(twin_id=ghost)
        _expect(found.total >= 1, "the row is not listed in quarantine")
        return f"1 row kept aside: {found.rows[0].message}"

    async def watch(self) -> str:
        """A change reaches a watcher."""
        async with aclosing(self._twin.watch()) as changes:
            async for event in changes:
                if event.kind == "SYNCED":
                    break
            began = time.perf_counter()
            ack = await self._twin.write_values({"temperature": 42.0})
            async for event in changes:
                if _tells(event, "temperature", 42.0):
                    break
        return f"the write at offset {ack.offset:,} told after {1e3 * (time.perf_counter() - began):.1f} ms"

    async def direct(self) -> str:
        """A target opens a delta."""
        want = await self._twin.set_desired({"stage": 3})
        _expect("stage" in want.delta, "the delta did not open")
        return f"delta {{stage: {want.delta['stage']!r}}} at offset {want.offset:,}"

    async def close_delta(self) -> str:
        """A fact that meets the target closes the delta."""
        ack = await self._twin.write_values({"stage": 3})
        state = await self._twin.get(min_offset=ack.offset)
        _expect(not state.delta, f"the delta is still open: {dict(state.delta)!r}")
        return f"delta {{}} at offset {state.as_of.offset:,}"

    async def models(self) -> str:
        """Training and inference answer."""
        versions = await self._mesh.models.versions(stage="production")
        deployments = await self._mesh.models.deployments()
        failed = [f"{d.model_id}@{d.version}: {d.message}" for d in deployments if d.state == "FAILED"]
        _expect(not failed, f"Triton could not load {', '.join(failed)}")
        return f"{len(versions)} in production, {sum(d.serving for d in deployments)} serving"

    async def delete(self) -> str:
        """Leave no twin behind."""
        await self._mesh.twins.delete(self._name)
        return self._name


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckFailedError(otherwise)


def _tells(event: WatchEvent, channel: str, value: float) -> bool:
    return channel in event.reported and event.reported[channel].value == value
