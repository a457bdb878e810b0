"""Which twins an entry of the log names: by the dictionary of a batch, by the action of a control entry."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError

from twinmesh.type.v1 import entry_pb2
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.observations import SeriesKey
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_storage.domain.entries import EntryKind, LogEntry


def twins_of(entry: LogEntry) -> frozenset[str] | None:
    """Return the twins that an entry names; None = it is of no twin in particular, or cannot be told."""
    return _of_batch(entry.body) if entry.kind is EntryKind.OBSERVATIONS else _of_control(entry.body)


def _of_batch(body: bytes) -> frozenset[str] | None:
    series = wire.whole_dictionary(body)
    try:
        return _NAMED.of(series) if series is not None else _named(decode_batch(body).series)
    except InvalidArgument:
        return None


class _Named:
    """The twins of dictionaries, by the identity of the tuple: senders repeat theirs, and the codec recognises them."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[tuple[SeriesKey, ...], frozenset[str]]] = OrderedDict()

    def of(self, series: tuple[SeriesKey, ...]) -> frozenset[str]:
        """Return the twins of a dictionary."""
        known = self._known.get(id(series))
        if known is None:
            known = self._known[id(series)] = (series, _named(series))  # held, so that its identity stays its own
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known[1]


def _named(series: Iterable[Any]) -> frozenset[str]:
    return frozenset(key.twin_id for key in series)


_KEPT: Final = 128
_NAMED: Final = _Named()


def _of_control(body: bytes) -> frozenset[str] | None:
    try:
        control = entry_pb2.ControlEntry.FromString(body)
    except DecodeError:
        return None
    name = control.WhichOneof("action")
    action: Any = getattr(control, name) if name is not None else None
    match name:
        case None | "create_twin_type":
            return None
        case "create_twin":
            return frozenset((action.twin.twin_id,))
        case "record_event":
            return frozenset((action.event.twin_id,))
        case _ if "twin_id" in action.DESCRIPTOR.fields_by_name:
            return frozenset((action.twin_id,))
        case _ if "series" in action.DESCRIPTOR.fields_by_name:
            return _named(action.series)
        case _:
            return None
