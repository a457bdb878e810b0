"""Control entries that storage writes and reads: those that hide observations, and what erasing leaves of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twinmesh.type.v1 import entry_pb2
from twinmesh_core.errors import InvalidArgument
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_runtime.registry_mapping import time_from_message, time_to_message
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.folding import Hide
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME
from twinmesh_storage.domain.redaction import without_series
from twinmesh_storage.domain.series import Series
from twinmesh_storage.rpc import mapping

OWN_ACTIONS: Final = frozenset({"delete_range", "erase_twin", "drop_history"})
"""Actions that storage alone may write: it resolves the series they name."""
OF_TWIN: Final = frozenset(
    {
        "set_desired",
        "record_prediction",
        "queue_command",
        "update_command",
        "record_event",
        "expire_desired",
        "set_connectivity",
        "acknowledge_desired",
        "cancel_command",
        "acknowledge_alarm",
        "shelve_alarm",
        "unshelve_alarm",
        "set_alarm_service",
        "look_at_alarms",
        "end_event",
    }
)
"""Actions whose content is of one twin, and is lost with it. Its creation and deletion are the registry's."""


def delete_range_body(
    request_id: str, principal: str, series: Sequence[Series], start: int | None, end: int | None
) -> bytes:
    """Return the entry that hides observations of series; None = no bound."""
    action = entry_pb2.DeleteRangeEntry(
        series=[mapping.series_message(s) for s in series],
        start_time=time_to_message(start) if start is not None else None,
        end_time=time_to_message(end) if end is not None else None,
    )
    entry = entry_pb2.ControlEntry(request_id=request_id, principal=principal, delete_range=action)
    return entry.SerializeToString(deterministic=True)


def erase_twin_body(request_id: str, principal: str, twin_id: str, series: Sequence[Series], erasure_id: str) -> bytes:
    """Return the entry that hides every observation of a twin."""
    action = entry_pb2.EraseTwinEntry(
        twin_id=twin_id, series=[mapping.series_message(s) for s in series], erasure_id=erasure_id
    )
    entry = entry_pb2.ControlEntry(request_id=request_id, principal=principal, erase_twin=action)
    return entry.SerializeToString(deterministic=True)


def drop_history_body(request_id: str, series: Sequence[Series], before_unix_us: int) -> bytes:
    """Return the entry that drops history before an event time."""
    action = entry_pb2.DropHistoryEntry(
        series=[mapping.series_message(s) for s in series], before=time_to_message(before_unix_us)
    )
    entry = entry_pb2.ControlEntry(request_id=request_id, principal="retention", drop_history=action)
    return entry.SerializeToString(deterministic=True)


def hide_of(entry: LogEntry) -> Hide | None:
    """Return what a control entry of the log hides; None = nothing."""
    control = entry_pb2.ControlEntry.FromString(entry.body)
    match control.WhichOneof("action"):
        case "delete_range":
            action = control.delete_range
            return Hide(
                tenant=entry.tenant,
                series_ids=frozenset(key.series_id for key in action.series),
                start=time_from_message(action.start_time) if action.HasField("start_time") else MIN_TIME,
                end=time_from_message(action.end_time) if action.HasField("end_time") else MAX_TIME,
                offset=entry.offset,
            )
        case "erase_twin":
            return Hide(
                tenant=entry.tenant,
                series_ids=frozenset(key.series_id for key in control.erase_twin.series),
                start=MIN_TIME,
                end=MAX_TIME,
                offset=entry.offset,
                erases=True,
            )
        case "drop_history":
            return Hide(
                tenant=entry.tenant,
                series_ids=frozenset(key.series_id for key in control.drop_history.series),
                start=MIN_TIME,
                end=time_from_message(control.drop_history.before),
                offset=entry.offset,
                drops=True,
            )
        case _:
            return None


def redact(entry: LogEntry, twin_id: str, series_ids: frozenset[int]) -> bytes | None:
    """Return an entry's body without what it holds of a twin; None = it holds nothing of it.

    Of a control entry the request id and the writer stay: a fold that meets it again finds an entry without effect.
    """
    if entry.kind is EntryKind.OBSERVATIONS:
        # Every batch that has rows of the twin spells its id in the dictionary.
        if twin_id.encode() not in entry.body:
            return None
        try:
            return without_series(decode_batch(entry.body), series_ids)
        except InvalidArgument as error:
            raise AssertionError(f"the body at offset {entry.offset} was durable without being a batch") from error
    control = entry_pb2.ControlEntry.FromString(entry.body)
    name = control.WhichOneof("action")
    if name == "set_connectivities":
        kept = [item for item in control.set_connectivities.items if item.twin_id != twin_id]
        if len(kept) == len(control.set_connectivities.items):
            return None
        del control.set_connectivities.items[:]
        control.set_connectivities.items.extend(kept)
        return control.SerializeToString(deterministic=True)
    if name is None or name not in OF_TWIN:
        return None
    action = getattr(control, name)
    if (action.event.twin_id if name == "record_event" else action.twin_id) != twin_id:
        return None
    control.ClearField(name)
    return control.SerializeToString(deterministic=True)
