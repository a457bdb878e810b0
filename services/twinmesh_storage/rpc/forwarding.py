"""Appends that reach a process which stands by go on to the one that holds the lease."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2
from twinmesh_client.transport import FORWARDED_KEY
from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_runtime.caller import Role, current_caller
from twinmesh_runtime.registry_mapping import time_from_message
from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.entries import Appended, NewEntry
from twinmesh_storage.domain.sequencer import Sequencer

ResultT = TypeVar("ResultT")


class Forward(Protocol):
    """Forwards to the process that holds the lease."""

    async def append(self, address: str, tenant: str, request: storage_pb2.AppendRequest) -> storage_pb2.AppendResponse:
        """Append there, within the deadline of the call being served.

        Raises:
            Unavailable: it cannot be reached, or does not hold the lease any more. Whether the entry was appended is
                open; under the same stamp or request_id it may be sent again.
            TwinmeshError: what it answered.
        """
        ...


def is_forwarded(context: Any) -> bool:
    """Return whether another storage process forwarded the call; it is then answered here and goes no further."""
    return any(key == FORWARDED_KEY for key, _ in context.invocation_metadata() or ())


def may_take_away(*, forwarded: bool) -> bool:
    """Return whether the call may append an entry that takes observations away: one that another process resolved."""
    return forwarded and current_caller().role is Role.SERVICE


async def here_or_there(
    sequencer: Sequencer,
    here: Callable[[], Awaitable[ResultT]],
    there: Callable[[str], Awaitable[ResultT]],
) -> ResultT:
    """Do here what takes the lease, or there (given the address) if another process is known to hold it.

    Raises:
        FailedPrecondition: NOT_SEQUENCER: this process stands by, and nobody is known to lead.
        TwinmeshError: what either raises.
    """
    elsewhere = sequencer.leader
    if not elsewhere:
        try:
            return await here()
        except FailedPrecondition as error:
            # Nothing was written. It may have been found out just now who leads.
            elsewhere = sequencer.leader
            if error.reason != Reason.NOT_SEQUENCER or not elsewhere:
                raise
    answer = await there(elsewhere)
    counter("storage", "forwarded_entries", "Appends answered by the process that leads.").inc()
    sequencer.look()
    return answer


def append_control(sequencer: Sequencer, forward: Forward) -> Callable[[NewEntry], Awaitable[Appended]]:
    """Return what appends a control entry of storage's own wherever the lease is."""

    async def append(entry: NewEntry) -> Appended:
        async def there(address: str) -> Appended:
            request = storage_pb2.AppendRequest(
                control=entry_pb2.ControlEntry.FromString(entry.body),
                content_hash=entry.content_hash,
                request_id=entry.request_id,
            )
            answer = await forward.append(address, entry.tenant, request)
            return Appended(
                offset=answer.position.offset,
                commit_time_unix_us=time_from_message(answer.commit_time),
                replayed=answer.replayed,
                receipt=answer.receipt,
            )

        return await here_or_there(sequencer, lambda: sequencer.append(entry), there)

    return append
