"""Batches that the mesh refused for good: what is wrong with them, and what they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from twinmesh.type.v1 import observation_pb2
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument, Reason, ResourceExhausted, TwinmeshError
from twinmesh_core.observations import ObservationBatch

REMEMBERED: Final = 1_000
"""Refused batches whose number is remembered, so that whoever waits for one is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedBatch:
    """One batch that the mesh refused as a whole: none of its rows is stored, and those behind it went on.

    Attributes:
        number: as `write` returned it.
        points: its rows.
        backfill: whether it was declared as recorded history.
        time_unix_us: when it was set aside, by this machine's clock.
        error: why, with the remedy.
        columns: the batch as it was sent, a serialized ``twinmesh.type.v1.ObservationBatch``.
    """

    number: int
    points: int
    backfill: bool
    time_unix_us: int
    error: TwinmeshError
    columns: bytes = field(repr=False)

    def batch(self) -> ObservationBatch:
        """Return its rows, to be mended and written again; raises `InvalidArgument` if the bytes are no batch."""
        try:
            return wire.decode(self.columns, _canonical)
        except DecodeError:
            raise InvalidArgument("columns: are not an ObservationBatch", reason=Reason.MALFORMED_MESSAGE) from None


class Refusals:
    """How many were refused, and the last of them by number."""

    def __init__(self) -> None:
        self.batches = 0
        self.points = 0
        self.last: TwinmeshError | None = None
        self._numbers: deque[int] = deque(maxlen=REMEMBERED)
        self._errors: dict[int, TwinmeshError] = {}

    def add(self, refused: RefusedBatch) -> None:
        """Count one."""
        self.batches += 1
        self.points += refused.points
        self.last = refused.error
        if len(self._numbers) == REMEMBERED:
            del self._errors[self._numbers[0]]
        self._numbers.append(refused.number)
        self._errors[refused.number] = refused.error

    def error_of(self, number: int) -> TwinmeshError | None:
        """Return why the batch of this number was refused; None = it was not, as far as is remembered."""
        return self._errors.get(number)


OnRefused = Callable[[RefusedBatch], None]
"""Is told of each batch that the mesh refused for good."""


def refuses(error: TwinmeshError) -> bool:
    """Return whether an error is about the batch that was sent, and the same batch will meet it again."""
    if isinstance(error, ResourceExhausted):
        return error.reason == Reason.MESSAGE_TOO_LARGE
    # A sequence that was used for something else is no fault of the batch: there are two producers of one name.
    return isinstance(error, InvalidArgument) and error.reason != Reason.SEQUENCE_REUSED


def _canonical(data: bytes) -> bytes:
    return observation_pb2.ObservationBatch.FromString(data).SerializeToString(deterministic=True)
