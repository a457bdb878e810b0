"""Landed batches to rows, with a memory for dictionaries.

A batch of 10,000 rows may name 1,000 series, and reading their names would cost more than everything else. A sender's
next batch mostly has the same dictionary, byte for byte, at the front of the message: recognised there, it is neither
read nor checked again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey
from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_storage.domain.ports import DecodeBatch
from twinmesh_storage.domain.rows import Segment, segments_of

_KEPT: Final = 256
_KEPT_BYTES: Final = 32 << 20
_HEAD_BYTES: Final = 96
_DICTIONARY_TAG: Final = b"\x0a"  # field 1, length-delimited
_KINDS_OF: Final[dict[str, tuple[ChannelKind, ...]]] = {
    "doubles": (ChannelKind.GAUGE, ChannelKind.COUNTER),
    "int64s": (ChannelKind.STATE,),
    "bools": (ChannelKind.BOOL,),
    "texts": (ChannelKind.TEXT,),
    "jsons": (ChannelKind.JSON,),
}


_MISFITS: Final = {
    name: ~np.isin(np.arange(256), [int(kind) for kind in allowed]) for name, allowed in _KINDS_OF.items()
}
"""By kind, whether its rows do not belong into the section."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dictionary:
    """The series of a batch.

    Attributes:
        keys: as sent.
        ids: int64 [k], series ids.
        kinds: uint8 [k], `ChannelKind` numbers.
        encoded: the bytes that begin a message with this dictionary; empty = not known.
    """

    keys: tuple[SeriesKey, ...]
    ids: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    encoded: bytes

    @classmethod
    def of(cls, batch: ObservationBatch, body: bytes) -> Dictionary:
        """Return the dictionary of a decoded batch."""
        return cls(
            keys=batch.series,
            ids=np.fromiter((key.series_id for key in batch.series), np.int64, len(batch.series)),
            kinds=np.fromiter((int(key.kind) for key in batch.series), np.uint8, len(batch.series)),
            encoded=_encoded_dictionary(body),
        )


class Landing:
    """Decodes landed batches; one per process."""

    def __init__(self, decode: DecodeBatch) -> None:
        self._decode = decode
        self._known: OrderedDict[bytes, Dictionary] = OrderedDict()
        self._known_bytes = 0

    def read(self, body: bytes) -> tuple[Dictionary, ObservationBatch]:
        """Return a batch and its dictionary; the same `Dictionary` object as before if it is known.

        The batch itself has no series then; its handles refer to the dictionary.

        Raises:
            InvalidArgument: the bytes are no batch, or a handle is not in the dictionary.
        """
        known = self._known.get(body[:_HEAD_BYTES])
        if known is not None and body.startswith(known.encoded):
            end = len(known.encoded)
            # By position and not as a slice: the columns are then views of the body itself, which is kept anyway.
            batch = wire.walk(body, end) if not body.startswith(_DICTIONARY_TAG, end) else None
            if batch is not None and not batch.series:
                self._known.move_to_end(body[:_HEAD_BYTES])
                _check_handles(batch, len(known.keys))
                return known, batch
        batch = self._decode(body)
        batch.check_handles()
        return Dictionary.of(batch, body), batch

    def remember(self, dictionary: Dictionary) -> None:
        """Recognise this dictionary from now on: its series have been checked."""
        if len(dictionary.encoded) < _HEAD_BYTES:
            return
        head = dictionary.encoded[:_HEAD_BYTES]
        old = self._known.pop(head, None)
        self._known_bytes += len(dictionary.encoded) - (len(old.encoded) if old is not None else 0)
        self._known[head] = dictionary
        while len(self._known) > _KEPT or self._known_bytes > _KEPT_BYTES:
            _, gone = self._known.popitem(last=False)
            self._known_bytes -= len(gone.encoded)

    def is_known(self, dictionary: Dictionary) -> bool:
        """Whether this very dictionary was remembered."""
        return self._known.get(dictionary.encoded[:_HEAD_BYTES]) is dictionary

    def segments(self, body: bytes) -> tuple[Segment, ...]:
        """Return the rows of a batch that is durable, so was checked when it was appended."""
        dictionary, batch = self.read(body)
        self.remember(dictionary)
        return segments_of(batch, dictionary.ids)


def check_rows(batch: ObservationBatch, dictionary: Dictionary) -> None:
    """Refuse rows that cannot be stored: of a series of another kind, or with a quality or time out of bounds.

    Raises:
        InvalidArgument: naming the section and the column.
    """
    for name, section in batch.sections():
        if not len(section):
            continue
        allowed = _KINDS_OF[name]
        misfits = _MISFITS[name].take(dictionary.kinds)
        if misfits.any() and misfits[section.series].any():
            raise invalid_field(
                f"observations.{name}.series",
                f"holds rows of a series that is not {' or '.join(k.name for k in allowed)}",
            )
        if int(section.quality.max()) > 3:
            raise invalid_field(f"observations.{name}.quality", "holds a number beyond 3; 1 GOOD, 2 UNCERTAIN, 3 BAD")
        if int(section.time_unix_us.min()) < MIN_TIME_UNIX_US or int(section.time_unix_us.max()) > MAX_TIME_UNIX_US:
            raise InvalidArgument(f"observations.{name}.time_unix_us: must lie within the years 1 to 9999")


def _check_handles(batch: ObservationBatch, series: int) -> None:
    for name, section in batch.sections():
        if len(section) and int(section.series.max()) >= series:
            raise invalid_field(
                f"observations.{name}.series",
                f"holds handle {int(section.series.max())}, but the dictionary has {series} entries",
            )


def _encoded_dictionary(body: bytes) -> bytes:
    """Return the bytes up to the first field that is not a dictionary entry; empty if that cannot be told."""
    try:
        return body[: wire.dictionary(body)[1]]
    except wire.NotCanonical:
        return b""
