"""A device's worker: each command takes effect once, in order, whatever is delivered again and whatever handlers do."""

# mypy: disable-error-code="arg-type"
# Why: a connection is faked by what the worker uses of it.

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twinmesh.type.v1 import command_pb2, observation_pb2
from twinmesh_client.aio.worker import Work, Worker
from twinmesh_client.commands import command
from twinmesh_client.journal import KEPT, Journal, Outcome
from twinmesh_client.orders import Cancelled, Order, Refused, Target
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, Reason, Unavailable


def order(number: int = 1, name: str = "open", state: str = "QUEUED", **more: Any) -> Any:
    message = command_pb2.Command(
        command_id=f"c{number}",
        twin_id="t",
        name=name,
        args={"value": observation_pb2.Value(double_value=40.0)},
        state=command_pb2.CommandState.Value(f"COMMAND_STATE_{state}"),
        create_offset=number,
        **more,
    )
    return command(message)


class Mesh:
    """What the mesh was told, and the faults it has."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.faults: list[Exception] = []
        self.ended: set[str] = set()

    async def acknowledge_command(self, request: Any, **_call: Any) -> None:
        if self.faults:
            raise self.faults.pop(0)
        state = command_pb2.CommandState.Name(request.state).removeprefix("COMMAND_STATE_")
        if request.command_id in self.ended:
            raise FailedPrecondition("it has ended", reason=Reason.COMMAND_STATE)
        if state == "SUCCEEDED" and "nothing" in request.result:
            raise InvalidArgument("result: too large")
        progress = request.progress_percent if request.HasField("progress_percent") else None
        result = {name: value.double_value for name, value in request.result.items()}
        self.said.append((request.command_id, state, *(x for x in (request.message, progress, result) if x)))

    async def acknowledge_desired(self, request: Any, **_call: Any) -> None:
        for item in request.items:
            self.said.append((item.channel, item.set_offset, item.state, item.reason))


@asynccontextmanager
async def working(mesh: Mesh, journal: Journal | None = None, **handlers: Any) -> AsyncIterator[Worker]:
    desired = {"speed": handlers.pop("speed")} if "speed" in handlers else {}

    async def report(twin_id: str, channel: str, value: Any) -> None:
        mesh.said.append((twin_id, "reports", channel, value))

    connection = SimpleNamespace(
        commands=SimpleNamespace(AcknowledgeCommand=mesh.acknowledge_command),
        replicas=SimpleNamespace(AcknowledgeDesired=mesh.acknowledge_desired),
        timeout_s=5.0,
    )
    work = Work(
        connection=connection, commands=handlers, desired=desired, journal=journal or Journal(None), report=report
    )
    worker = Worker(work, "t")
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(mesh: Mesh, count: int) -> list[tuple[Any, ...]]:
    async with asyncio.timeout(5):
        while len(mesh.said) < count:  # noqa: ASYNC110  told by a list
            await asyncio.sleep(0.005)
    return mesh.said


async def test_commands_are_done_in_order_and_answered_with_what_the_handler_returns() -> None:
    mesh = Mesh()
    answers: list[Any] = [{"litres": 4.0}, "words", 7.0, None]
    async with working(mesh, open=lambda _order: answers.pop(0)) as worker:
        for number in (1, 2, 3, 4):
            worker.take_command(order(number))
        said = await until(mesh, 8)
    assert said[1::2] == [
        ("c1", "SUCCEEDED", {"litres": 4.0}),
        ("c2", "SUCCEEDED", "words"),
        ("c3", "SUCCEEDED", {"value": 7.0}),
        ("c4", "SUCCEEDED"),
    ]
    assert said[0::2] == [(f"c{n}", "DELIVERED") for n in (1, 2, 3, 4)]


async def test_what_a_handler_raises_fails_its_command_and_no_other() -> None:
    mesh = Mesh()
    errors = [Refused("locked"), ZeroDivisionError("by zero"), Cancelled("given up")]

    async def fail(_order: Order) -> None:
        raise errors.pop(0)

    async with working(mesh, open=fail) as worker:
        for number in (1, 2, 3):
            worker.take_command(order(number))
        worker.take_command(order(4, name="fly"))
        said = await until(mesh, 8)
    assert said[1::2] == [
        ("c1", "FAILED", "locked"),
        ("c2", "FAILED", "ZeroDivisionError: by zero"),
        ("c3", "CANCELLED", "given up"),
        ("c4", "FAILED", "this device has no command fly"),
    ]


async def test_a_command_that_is_delivered_again_takes_effect_once_also_in_the_next_process(tmp_path: Path) -> None:
    done: list[str] = []
    path = tmp_path / "commands.jsonl"
    for lost in range(3):
        mesh = Mesh()
        mesh.ended = set() if lost == 2 else {"nobody"}
        async with working(mesh, Journal(path), open=lambda o: done.append(o.command_id)) as worker:
            worker.take_command(order(1, state="QUEUED" if lost == 0 else "DELIVERED"))
            worker.take_command(order(1, state="DELIVERED"))
            said = await until(mesh, 2 if lost == 0 else 1)
            worker.take_command(order(1, state="DELIVERED"))
            await until(mesh, len(said) + 1)
    assert done == ["c1"]
    assert set(mesh.said) == {("c1", "SUCCEEDED")}


async def test_what_was_under_way_when_the_process_died_is_failed_and_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "commands.jsonl"
    Journal(path).begin("t/c1")
    mesh, done = Mesh(), list[str]()
    async with working(mesh, Journal(path), open=done.append) as worker:
        worker.take_command(order(1, state="DELIVERED"))
        ((_, state, words),) = await until(mesh, 1)
    assert (state, done) == ("FAILED", [])
    assert "not known" in words


async def test_an_answer_is_insisted_upon_while_the_mesh_is_away() -> None:
    mesh, done = Mesh(), []
    mesh.faults = [Unavailable("away"), Unavailable("away")]
    async with working(mesh, open=lambda o: done.append(o.command_id)) as worker:
        worker.take_command(order(1))
        assert await until(mesh, 2) == [("c1", "DELIVERED"), ("c1", "SUCCEEDED")]
    assert done == ["c1"]


async def test_an_order_that_ended_before_it_was_taken_is_not_done() -> None:
    mesh, done = Mesh(), []
    mesh.ended = {"c1"}
    async with working(mesh, open=lambda o: done.append(o.command_id)) as worker:
        worker.take_command(order(1))
        worker.take_command(order(2))
        await until(mesh, 2)
    assert done == ["c2"]


async def test_a_running_order_sees_that_it_is_to_be_given_up_and_tells_progress() -> None:
    mesh = Mesh()
    at_work = asyncio.Event()

    async def slow(at: Order) -> None:
        at.progress(30, "turning")
        at_work.set()
        await at.wait_cancelled()
        at.check_cancelled()

    async with working(mesh, open=slow) as worker:
        worker.take_command(order(1))
        async with asyncio.timeout(5):
            await at_work.wait()
        await until(mesh, 2)
        worker.take_command(order(1, state="DELIVERED", cancel_requested=True, cancel_reason="not needed"))
        said = await until(mesh, 3)
        at_work.clear()
        worker.take_command(order(2))
        async with asyncio.timeout(5):
            await at_work.wait()
        worker.take_command(order(2, state="EXPIRED"))
        await until(mesh, 6)
    assert said[1:3] == [("c1", "DELIVERED", 30.0), ("c1", "CANCELLED", "not needed")]
    assert mesh.said[-1] == ("c2", "CANCELLED", "it is EXPIRED")


async def test_a_result_that_cannot_be_sent_does_not_hide_the_success() -> None:
    mesh = Mesh()
    async with working(mesh, open=lambda _o: {"nothing": 1.0}) as worker:
        worker.take_command(order(1))
        said = await until(mesh, 2)
    assert said[1][:2] == ("c1", "SUCCEEDED")
    assert "too large" in said[1][2]


async def test_targets_are_obeyed_once_and_only_the_newest_of_those_that_wait() -> None:
    mesh, seen = Mesh(), []

    def obey(want: Target) -> Any:
        seen.append(want.offset)
        if want.value == 99.0:
            raise Refused("too fast")
        return want.value

    def target(offset: int, value: float = 1.0) -> Target:
        return Target(twin_id="t", channel="speed", value=value, offset=offset)

    async with working(mesh, speed=obey) as worker:
        for offset in (5, 6, 7, 7, 6):
            worker.take_target(target(offset))
        await until(mesh, 2)
        worker.take_target(target(9, 99.0))
        await until(mesh, 4)
    assert seen == [7, 9]
    assert mesh.said == [
        ("speed", 7, 2, ""),
        ("t", "reports", "speed", 1.0),
        ("speed", 9, 2, ""),
        ("speed", 9, 4, "too fast"),
    ]


def test_a_journal_drops_a_line_that_a_crash_cut_off_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.begin("a")
    journal.end("a", Outcome(state="SUCCEEDED", message="ü", result={"x": [1, 2]}))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "sta')
    again = Journal(path)
    assert again.get("a") == Outcome(state="SUCCEEDED", message="ü", result={"x": [1, 2]})
    assert again.get("b") is None
    again.begin("c")
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "a", "c"]
    again._lines = 3 * KEPT
    again.end("c", Outcome(state="FAILED"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert Journal(path).get("c") == Outcome(state="FAILED")


async def test_progress_is_a_percentage() -> None:
    with pytest.raises(InvalidArgument, match="percent"):
        Order(order()).progress(101)
