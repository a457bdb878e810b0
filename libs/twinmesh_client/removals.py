"""What was taken away: deletions and erasures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.replicas import moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """The erasure of a twin.

    Attributes:
        state: ``running``, ``succeeded`` or ``failed``.
        offset: of the entry from which on no read shows what had arrived; 0 = not written yet.
        progress: share that is done, 0 to 1.
        entries_rewritten: entries of the log whose content was changed.
        rows_erased: rows removed from history.
        scrubbed: quarantined rows and receipts emptied.
        message: why it failed.
    """

    erasure_id: str
    twin_id: str
    principal: str
    state: str
    offset: int
    progress: float
    entries_rewritten: int
    rows_erased: int
    scrubbed: int
    message: str
    create_time: datetime
    end_time: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it goes on no more."""
        return self.state != "running"


def erasure(message: storage_pb2.Erasure) -> Erasure:
    """Return an erasure."""
    return Erasure(
        erasure_id=message.erasure_id,
        twin_id=message.twin_id,
        principal=message.principal,
        state=storage_pb2.ErasureState.Name(message.state).removeprefix("ERASURE_STATE_").lower(),
        offset=message.offset,
        progress=message.progress,
        entries_rewritten=message.entries_rewritten,
        rows_erased=message.rows_erased,
        scrubbed=message.scrubbed,
        message=message.message,
        create_time=moment(message.create_time),
        end_time=moment(message.end_time) if message.HasField("end_time") else None,
    )
