"""What was taken away, and what goes by itself: erasures, and rules of how long history is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.durations import Span, moment, proto_span

FOREVER: Final = "forever"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """How long observations are kept, by event time.

    Attributes:
        twin_id: "" = of all twins.
        channel: "" = all channels.
        keep: None = for ever, whatever more general rules say.
        retention_class: "" = channels of any class, or of none.
    """

    twin_id: str
    channel: str
    keep: timedelta | None
    retention_class: str = ""


def retention_rule(message: storage_pb2.RetentionRule) -> RetentionRule:
    """Return a rule."""
    keep = message.keep.ToTimedelta()
    return RetentionRule(
        twin_id=message.twin_id, channel=message.channel, keep=keep or None, retention_class=message.retention_class
    )


def retention_request(
    keep: Span | None, twin_id: str, channel: str, retention_class: str
) -> storage_pb2.SetRetentionRequest:
    """Return what sets a rule, or removes it; raises `InvalidArgument` for what is no span."""
    rule = storage_pb2.RetentionRule(twin_id=twin_id, channel=channel, retention_class=retention_class)
    if keep is not None:
        rule.keep.CopyFrom(Duration() if keep == FOREVER else proto_span(keep, "keep"))
    return storage_pb2.SetRetentionRequest(rule=rule)
