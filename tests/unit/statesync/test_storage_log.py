"""What state-sync writes rides out a restart of storage, and tells in time who is in a hurry what is wrong."""

from __future__ import annotations

import time
from typing import Any

import grpc
import grpc.aio
import pytest

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core.call_context import CallContext, enter_call
from twinmesh_core.errors import InvalidArgument, TwinmeshError, Unavailable
from twinmesh_statesync.adapters.storage_log import StorageLog
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.entries import ControlEntry, DeleteTwin
from twinmesh_statesync.rpc.mapping.control import control_from_message, control_to_message


class Storage:
    """Answers appends with errors first, then with a position."""

    def __init__(self, errors: list[TwinmeshError]) -> None:
        self.errors = errors
        self.requests: list[storage_pb2.AppendRequest] = []

    async def append(self, request: storage_pb2.AppendRequest, **_: Any) -> storage_pb2.AppendResponse:
        self.requests.append(request)
        if self.errors:
            raise self.errors.pop(0)
        return storage_pb2.AppendResponse(position=position_pb2.LogPosition(incarnation="i", offset=7))


async def write(storage: Storage, request_id: str = "r1") -> Position:
    """Append one entry to a storage that behaves so."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with grpc.insecure_channel("127.0.0.1:1") as reading:
            log = StorageLog(channel, reading=reading, encode=control_to_message, decode=control_from_message)
            log._stub.Append = storage.append  # type: ignore[method-assign,assignment]
            entry = ControlEntry(request_id=request_id, principal="p", action=DeleteTwin(twin_id="t"))
            return await log.append("default", entry, content_hash=b"0" * 16)


async def test_a_write_is_sent_again_as_it_was_until_storage_is_back() -> None:
    storage = Storage([Unavailable("away")] * 3)
    assert await write(storage) == Position(incarnation="i", offset=7)
    assert len(storage.requests) == 4
    assert all(request == storage.requests[0] for request in storage.requests)


async def test_a_storage_that_stays_away_is_told_after_a_restart_would_be_over() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await write(Storage([Unavailable("away")] * 100))
    assert 2.0 < time.monotonic() - began < 4.0


async def test_a_caller_with_little_time_is_told_what_is_wrong_before_it_is_over() -> None:
    enter_call(CallContext(deadline_s=time.monotonic() + 0.6, request_id="x"))
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await write(Storage([Unavailable("away")] * 100))
    assert time.monotonic() - began < 0.6


async def test_what_could_be_there_twice_or_is_refused_is_sent_once() -> None:
    nameless, refused = Storage([Unavailable("away")]), Storage([InvalidArgument("no")])
    with pytest.raises(Unavailable):
        await write(nameless, request_id="")
    with pytest.raises(InvalidArgument):
        await write(refused)
    assert (len(nameless.requests), len(refused.requests)) == (1, 1)
