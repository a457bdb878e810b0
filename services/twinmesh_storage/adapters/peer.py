"""The storage process that appends, as the others reach it."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc.aio

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh_client.transport import FORWARDED_KEY, call, open_channel, tenant_metadata
from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError, Unavailable

_RETRY_S: Final = 0.2


class Peer:
    """Forwards appends to one process at a time: the one that holds the lease as far as this one knows.

    Args:
        max_message_bytes: bound of one message, as the server has it.
        timeout_s: longest wait for an answer; less where the call being served has less left.
    """

    def __init__(self, *, max_message_bytes: int, timeout_s: float) -> None:
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        self._address = ""
        self._channel: grpc.aio.Channel | None = None

    async def append(self, address: str, tenant: str, request: storage_pb2.AppendRequest) -> storage_pb2.AppendResponse:
        """See `Forward.append`."""
        stub = storage_pb2_grpc.StorageServiceStub(await self._to(address))
        metadata = (*tenant_metadata(tenant), (FORWARDED_KEY, "1"))
        try:
            return await call(stub.Append, request, timeout_s=self._timeout_s, metadata=metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _moved() from None  # the channel was closed under the call: somebody else appends now
        except TwinmeshError as error:
            if isinstance(error, Unavailable):
                raise _moved() from error
            if isinstance(error, FailedPrecondition) and error.reason == Reason.NOT_SEQUENCER:
                raise _moved() from error
            raise

    async def _to(self, address: str) -> grpc.aio.Channel:
        channel = self._channel
        if channel is None or self._address != address:
            # First the new one: whoever awaits here next must not open another.
            old, self._address = channel, address
            channel = self._channel = open_channel(address, max_message_bytes=self._max_message_bytes)
            if old is not None:
                await old.close()
        return channel

    async def close(self) -> None:
        """End what is under way: nobody is to be forwarded to any more."""
        channel, self._channel, self._address = self._channel, None, ""
        if channel is not None:
            await channel.close()


def _moved() -> Unavailable:
    return Unavailable(
        "The storage process that appends cannot be reached, or another one takes over; send again under the same "
        "stamp or request_id.",
        metadata={"dependency": "storage"},
        retry_after_s=_RETRY_S,
    )
