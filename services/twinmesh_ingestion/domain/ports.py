"""What ingestion needs from outside: the log to append to, and the registry that the log's control entries make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import SeriesKey
from twinmesh_core.quality import FlagReason
from twinmesh_core.registry import Twin
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_ingestion.domain.outcomes import Ack, QuarantinedRow, Sweep
from twinmesh_ingestion.domain.simple import SimpleObservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """A producer's stamp on one batch; travels unchanged to storage."""

    producer_id: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineFilter:
    """Which rows of quarantine are meant: those that meet every condition; empty (0, None) = no condition.

    Attributes:
        reasons: why they are there.
        twin_id: as sent.
        channel: as sent.
        start_time_unix_us: first event time.
        end_time_unix_us: event time after the last.
        start_offset: first log entry that they came with.
        end_offset: log entry after the last.
        quarantine_ids: only these.
    """

    reasons: tuple[FlagReason, ...] = ()
    twin_id: str = ""
    channel: str = ""
    start_time_unix_us: int | None = None
    end_time_unix_us: int | None = None
    start_offset: int = 0
    end_offset: int = 0
    quarantine_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A row in quarantine: what was sent, why it is there, and whether a text value is a JSON document."""

    quarantine_id: int
    observation: SimpleObservation
    reason: FlagReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPage:
    """Rows in quarantine, oldest first; whether there are more, and how many match the filter in all."""

    rows: tuple[KeptRow, ...]
    more: bool
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineChange:
    """What an entry does to rows in quarantine, in its own transaction.

    Attributes:
        replayed: ids of rows that leave, since they went through the pipeline.
        discarded: ids of rows that leave, since they are not wanted.
        kept: id, reason and message of rows that stay.
        principal: who asked for it.
        comment: why, for rows that are discarded.
    """

    replayed: tuple[int, ...] = ()
    discarded: tuple[int, ...] = ()
    kept: tuple[tuple[int, FlagReason, str], ...] = ()
    principal: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One entry to append: everything that must become durable together.

    Attributes:
        body: the landed batch, encoded.
        content_hash: BLAKE2b-16 of the bytes as received.
        receipt: the acknowledgement, kept by storage and given back when the same entry is sent again.
        quarantine: rows kept aside.
        change: what happens to rows in quarantine; needs a request_id.
        stamp: of a producer session; excludes request_id.
        request_id: idempotency key of a unary write.
    """

    body: bytes
    content_hash: bytes
    receipt: bytes
    quarantine: Sequence[QuarantinedRow]
    change: QuarantineChange | None = None
    stamp: Stamp | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The entry is durable; when `replayed`, offset and receipt are those of the first time (receipt may be lost)."""

    offset: int
    incarnation: str
    replayed: bool
    receipt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedProducer:
    """A producer session: its epoch, and the last durable sequence (0 = none)."""

    epoch: int
    last_sequence: int
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSeries:
    """A series whose durable id is wanted; `unit` is canonical, `retention_class` may change ("" = none)."""

    twin_id: str
    channel: str
    unit: str
    kind: ChannelKind
    expected_interval_us: int
    retention_class: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatestValues:
    """The newest durable values of n series of numbers.

    Attributes:
        series_id: int64 [n], the series; each once.
        time_unix_us: int64 [n], event time.
        value: float64 [n], in the canonical unit.
        quality: uint8 [n], as stored.
    """

    series_id: npt.NDArray[np.int64]
    time_unix_us: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    quality: npt.NDArray[np.uint8]


class Log(Protocol):
    """The log of storage. Every method raises `Unavailable` when storage does not answer in time."""

    async def append(self, tenant: str, submission: Submission) -> Appended:
        """Make the entry durable; the same stamp or request_id again gives the first answer.

        Raises:
            FailedPrecondition: SEQUENCE_GAP, PRODUCER_FENCED, NOT_SEQUENCER; QUARANTINE_CHANGED if a row of the
                change is not in quarantine any more.
            InvalidArgument: SEQUENCE_REUSED, REQUEST_ID_REUSED.
            ResourceExhausted: OVERLOADED, with the pause to make.
        """
        ...

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> OpenedProducer:
        """Open a session, which fences older ones.

        Raises:
            FailedPrecondition: PRODUCER_FENCED, the producer's epoch is above `last_epoch`, which is not 0.
        """
        ...

    async def resolve_series(self, tenant: str, series: Sequence[NewSeries], registry_offset: int) -> list[int]:
        """Return the durable ids, in order; new series get new ones, and known ones the class of retention given.

        A class that was given as of a later offset of the registry stays.
        """
        ...

    async def latest(self, tenant: str, series: Sequence[SeriesKey]) -> LatestValues:
        """Return the newest values of series of numbers, by name; those without a value are left out."""
        ...

    async def create_twin(self, tenant: str, twin: Twin) -> None:
        """Make the creation of a twin durable; one of the same type that exists by then is left as it is."""
        ...

    async def kept(self, tenant: str, wanted: QuarantineFilter, *, after: int, limit: int) -> KeptPage:
        """Return rows in quarantine with ids above `after`, oldest first.

        Raises:
            InvalidArgument: a filter that cannot be met.
        """
        ...


class Registry(Protocol):
    """Twin types and twins as of the followed offset."""

    @property
    def fold(self) -> RegistryFold:
        """The registry now; read it and let go, it is replaced when the log was rewound."""
        ...

    @property
    def generation(self) -> int:
        """Changes whenever a verdict about a twin or channel may have changed."""
        ...

    async def catch_up(self) -> None:
        """Wait until the fold reflects everything that is durable now.

        Raises:
            Unavailable: storage does not answer in time.
        """
        ...


class Receipts(Protocol):
    """Answers as bytes: storage keeps them, ingestion alone reads them."""

    def encode_sweep(self, sweep: Sweep) -> bytes:
        """Return the answer to a sweep of quarantine as bytes."""
        ...

    def decode_sweep(self, receipt: bytes) -> Sweep:
        """Return the answer that `encode_sweep` wrote."""
        ...

    def encode(self, ack: Ack) -> bytes:
        """Return the acknowledgement as bytes."""
        ...

    def decode(self, receipt: bytes) -> Ack:
        """Return the acknowledgement that `encode` wrote."""
        ...
