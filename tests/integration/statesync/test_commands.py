"""The life of commands between a caller, the log and a device that comes and goes."""

# mypy: disable-error-code="arg-type"
# Why: messages are built from enum names, which the stubs do not know.

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import command_pb2, observation_pb2, replica_pb2
from twinmesh_client.transport import call, stream
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, NotFound


def send(sync: StateSync, name: str, **more: Any) -> Any:
    request = statesync_pb2.SendCommandRequest(twin_id="p1", name=name, **more)
    return call(sync.commands.SendCommand, request, timeout_s=TIMEOUT_S)


def acknowledge(sync: StateSync, command_id: str, state: Any, message: str = "") -> Any:
    request = statesync_pb2.AcknowledgeCommandRequest(twin_id="p1", command_id=command_id, state=state, message=message)
    return call(sync.commands.AcknowledgeCommand, request, timeout_s=TIMEOUT_S)


async def received(sync: StateSync, count: int) -> list[Any]:
    """Connect as a device and return the first `count` commands."""
    got: list[Any] = []
    request = statesync_pb2.FollowCommandsRequest(twin_ids=["p1"])
    async with aclosing(stream(sync.commands.FollowCommands, request, timeout_s=TIMEOUT_S)) as answers:
        async for answer in answers:
            got += answer.commands
            if len(got) >= count:
                break
    return got


async def told_next(answers: Any) -> Any:
    """Return the next command that a stream tells."""
    async for answer in answers:
        if answer.commands:
            return answer.commands[0]
    return None


async def test_a_device_that_was_away_gets_its_commands_in_order_until_it_acknowledges(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        first = await send(sync, "stop", request_id="s-1")
        again = await send(sync, "stop", request_id="s-1")
        assert again.command.command_id == first.command.command_id
        desired = await call(
            sync.replicas.SetDesired,
            statesync_pb2.SetDesiredRequest(twin_id="p1", values={"speed": observation_pb2.Value(double_value=40.0)}),
            timeout_s=TIMEOUT_S,
        )
        carrier = desired.commands[0].command_id
        got = await received(sync, 2)
        assert [command.command_id for command in got] == [first.command.command_id, carrier]
        assert got[1].args["value"].double_value == 40.0
        assert [c.command_id for c in await received(sync, 2)] == [c.command_id for c in got]
        await acknowledge(sync, first.command.command_id, command_pb2.COMMAND_STATE_SUCCEEDED)
        assert [c.command_id for c in await received(sync, 1)] == [carrier]
        await acknowledge(sync, carrier, command_pb2.COMMAND_STATE_DELIVERED)
        assert (await sync.replica("p1")).desired.values[0].state == replica_pb2.DESIRED_STATE_DELIVERED
        await acknowledge(sync, carrier, command_pb2.COMMAND_STATE_SUCCEEDED)
        offset = await sync.observe("p1", "speed", [1_700_000_000_000_000], [40.3])
        replica = await sync.replica("p1", offset)
        assert replica.desired.values[0].state == replica_pb2.DESIRED_STATE_APPLIED
        assert not replica.delta.items
        with pytest.raises(FailedPrecondition) as ended:
            await acknowledge(sync, carrier, command_pb2.COMMAND_STATE_FAILED)
        assert (ended.value.reason, ended.value.metadata["state"]) == ("COMMAND_STATE", "SUCCEEDED")


async def test_a_connected_device_gets_a_new_command_at_once_and_signs_of_life(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        request = statesync_pb2.FollowCommandsRequest(twin_ids=["p1"])
        async with aclosing(stream(sync.commands.FollowCommands, request, timeout_s=TIMEOUT_S)) as answers:
            assert not (await anext(answers)).commands
            sent = await send(sync, "stop")
            async with asyncio.timeout(3):
                async for answer in answers:
                    if answer.commands:
                        assert answer.commands[0].command_id == sent.command.command_id
                        break


async def test_commands_expire_and_are_cancelled(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        short = await send(sync, "stop", time_to_live={"nanos": 100_000_000})
        get = statesync_pb2.GetCommandRequest(twin_id="p1", command_id=short.command.command_id)
        async with asyncio.timeout(5):
            while True:
                command = (await call(sync.commands.GetCommand, get, timeout_s=TIMEOUT_S)).command
                if command.state == command_pb2.COMMAND_STATE_EXPIRED:
                    break
                await asyncio.sleep(0.05)
        other = await send(sync, "stop")
        cancel = statesync_pb2.CancelCommandRequest(
            twin_id="p1", command_id=other.command.command_id, message="not needed"
        )
        cancelled = await call(sync.commands.CancelCommand, cancel, timeout_s=TIMEOUT_S)
        assert cancelled.command.state == command_pb2.COMMAND_STATE_CANCELLED
        listing = statesync_pb2.ListCommandsRequest(twin_id="p1")
        listed = await call(sync.commands.ListCommands, listing, timeout_s=TIMEOUT_S)
        assert [c.command_id for c in listed.commands] == [other.command.command_id, short.command.command_id]
        working = await send(sync, "stop")
        order = working.command.command_id
        request = statesync_pb2.FollowCommandsRequest(twin_ids=["p1"])
        async with aclosing(stream(sync.commands.FollowCommands, request, timeout_s=TIMEOUT_S)) as answers:
            assert [c.command_id for c in (await anext(answers)).commands] == [order]
            progress = statesync_pb2.AcknowledgeCommandRequest(
                twin_id="p1", command_id=order, state="COMMAND_STATE_DELIVERED", progress_percent=30
            )
            told = (await call(sync.commands.AcknowledgeCommand, progress, timeout_s=TIMEOUT_S)).command
            assert told.progress_percent == 30.0
            asked = statesync_pb2.CancelCommandRequest(twin_id="p1", command_id=order, message="stop it")
            assert (await call(sync.commands.CancelCommand, asked, timeout_s=TIMEOUT_S)).command.state == told.state
            again = await told_next(answers)
            assert (again.cancel_requested, again.cancel_reason) == (True, "stop it")
            asked.force = True
            forced = (await call(sync.commands.CancelCommand, asked, timeout_s=TIMEOUT_S)).command
            assert forced.state == command_pb2.COMMAND_STATE_CANCELLED
            assert (await told_next(answers)).state == command_pb2.COMMAND_STATE_CANCELLED
        large = {"text": observation_pb2.Value(text_value="x" * 20_000)}
        answer = statesync_pb2.AcknowledgeCommandRequest(
            twin_id="p1", command_id=order, state="COMMAND_STATE_SUCCEEDED", result=large
        )
        with pytest.raises(InvalidArgument, match="result"):
            await call(sync.commands.AcknowledgeCommand, answer, timeout_s=TIMEOUT_S)
        with pytest.raises(InvalidArgument):
            await send(sync, "fly")
        with pytest.raises(NotFound):
            await acknowledge(sync, "ghost", command_pb2.COMMAND_STATE_FAILED)
