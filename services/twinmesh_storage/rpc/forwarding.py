"""Appends that reach a process which stands by go on to the one that holds the lease."""

from __future__ import annotations

from typing import Any, Protocol

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.transport import FORWARDED_KEY


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
