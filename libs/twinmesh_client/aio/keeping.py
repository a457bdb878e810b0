"""What is kept, and what is gone: rules of how long history is kept, and erasures."""

from __future__ import annotations

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.aio.connection import Connection
from twinmesh_client.durations import Span
from twinmesh_client.removals import Erasure, RetentionRule, erasure, retention_request, retention_rule
from twinmesh_client.transport import call


class Keeping:
    """Erasures, and how long history is kept; the part of `Mesh` about what goes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def erasure(self, erasure_id: str) -> Erasure:
        """Return the erasure of a twin, begun by ``twins[...].erase()``; raises `NotFound`."""
        request = storage_pb2.GetErasureRequest(erasure_id=erasure_id)
        answer = await call(self._connection.storage.GetErasure, request, timeout_s=self._connection.timeout_s)
        return erasure(answer.erasure)

    async def erasures(self, twin_id: str = "") -> list[Erasure]:
        """Return all erasures, or those of one twin, by id."""
        found: list[Erasure] = []
        token = ""
        while True:
            request = storage_pb2.ListErasuresRequest(twin_id=twin_id, page_token=token)
            answer = await call(self._connection.storage.ListErasures, request, timeout_s=self._connection.timeout_s)
            found.extend(erasure(e) for e in answer.erasures)
            token = answer.next_page_token
            if not token:
                return found

    async def set_retention(
        self, keep: Span | None, *, twin_id: str = "", channel: str = "", retention_class: str = ""
    ) -> None:
        """Say how long observations are kept, by event time; what is older leaves history, and not as a deletion does.

        Args:
            keep: at least a minute; "forever" = whatever more general rules say; None removes the rule.
            twin_id: "" = of all twins.
            channel: "" = all channels.
            retention_class: all channels to which their twin type gives this class; without twin_id and channel.

        The most specific rule counts: a twin's channel, a twin, a channel, a class, all.
        """
        request = retention_request(keep, twin_id, channel, retention_class)
        await call(self._connection.storage.SetRetention, request, timeout_s=self._connection.timeout_s)

    async def retention(self) -> list[RetentionRule]:
        """Return the rules of how long observations are kept; without any, they are kept for ever."""
        request = storage_pb2.ListRetentionRequest()
        answer = await call(self._connection.storage.ListRetention, request, timeout_s=self._connection.timeout_s)
        return [retention_rule(rule) for rule in answer.rules]
