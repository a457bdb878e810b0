"""The exactly-once rules: which waiting entries are new, which were durable before, which are refused.

Pure: given what the database knows of the producers and request ids that a group names, it decides the whole group in
order. The caller must hold those rows locked until the group is committed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from twinmesh_core.errors import FailedPrecondition, InvalidArgument, Reason, TwinmeshError, invalid_field
from twinmesh_storage.domain.entries import Appended, NewEntry, ProducerStamp, QuarantineChange

Key = tuple[str, str]
"""(tenant, producer id) or (tenant, request id)."""
RowKey = tuple[str, int]
"""(tenant, quarantine id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerState:
    """A producer's high-water row.

    Attributes:
        epoch: of its newest session; older ones are fenced.
        last_sequence: last durable sequence; 0 = none.
        last_hash: content hash of that batch.
        last: the answer given to that batch.
    """

    epoch: int
    last_sequence: int
    last_hash: bytes
    last: Appended


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestState:
    """A request id that was seen: the hash of its content and the answer given."""

    content_hash: bytes
    answer: Appended


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The entry is new; it gets the `rank`-th offset of the group (from 0)."""

    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The same entry stands earlier in this very group, at `rank`; it gets that one's answer as a replay."""

    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The entry was durable before; nothing is written."""

    answer: Appended


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The entry breaks a rule; nothing is written."""

    error: TwinmeshError


Verdict = Accept | Repeat | Answer | Refuse


@dataclass(slots=True)
class _Progress:
    """A producer's state as the group moves it; `rank` is its newest accepted batch's, -1 = none in this group."""

    state: ProducerState
    rank: int = -1


def admit(
    group: Sequence[NewEntry],
    producers: Mapping[Key, ProducerState],
    requests: Mapping[Key, RequestState],
    quarantined: Collection[RowKey] = (),
) -> list[Verdict]:
    """Decide a group in order; the answer has one verdict per entry.

    Args:
        group: the waiting entries.
        producers: state of every producer that the group names and that exists.
        requests: state of every request id that the group names and that was seen.
        quarantined: of the rows whose state the group changes, those that are in quarantine.
    """
    waiting = set(quarantined)
    moving = {key: _Progress(state) for key, state in producers.items()}
    fresh: dict[Key, tuple[bytes, int]] = {}
    verdicts: list[Verdict] = []
    rank = 0
    for entry in group:
        verdict: Verdict
        if entry.producer is not None:
            verdict = _admit_stamped(
                entry, entry.producer, moving.get((entry.tenant, entry.producer.producer_id)), rank
            )
        elif entry.request_id:
            verdict = _admit_request(entry, requests, fresh, rank)
        else:
            verdict = Accept(rank=rank)
        if isinstance(verdict, Accept) and entry.quarantine_change is not None:
            verdict = _admit_change(entry, entry.quarantine_change, waiting, verdict)
            if isinstance(verdict, Refuse):
                fresh.pop((entry.tenant, entry.request_id), None)
        if isinstance(verdict, Accept):
            rank += 1
        verdicts.append(verdict)
    return verdicts


def taken_over(producer_id: str, epoch: int) -> FailedPrecondition:
    """Return the error for whoever wants to go on with a session that is not the producer's newest."""
    return FailedPrecondition(
        f"Session {epoch} of producer {producer_id} is closed; a newer one took over.", reason=Reason.PRODUCER_FENCED
    )


def _admit_stamped(entry: NewEntry, stamp: ProducerStamp, progress: _Progress | None, rank: int) -> Verdict:
    if progress is None:
        return Refuse(error=invalid_field("producer.producer_id", "has no session; call OpenProducer first"))
    state = progress.state
    if stamp.epoch != state.epoch:
        return Refuse(
            error=FailedPrecondition(
                f"Session {stamp.epoch} of producer {stamp.producer_id} is closed; session {state.epoch} took over.",
                reason=Reason.PRODUCER_FENCED,
                metadata={"current_epoch": str(state.epoch)},
            )
        )
    if stamp.sequence > state.last_sequence + 1:
        return Refuse(
            error=FailedPrecondition(
                f"Sequence {stamp.sequence} skips {state.last_sequence + 1}; send from there on.",
                reason=Reason.SEQUENCE_GAP,
                metadata={"expected_sequence": str(state.last_sequence + 1)},
            )
        )
    if stamp.sequence == state.last_sequence + 1:
        progress.state = replace(state, last_sequence=stamp.sequence, last_hash=entry.content_hash)
        progress.rank = rank
        return Accept(rank=rank)
    return _admit_again(entry, stamp, progress)


def _admit_again(entry: NewEntry, stamp: ProducerStamp, progress: _Progress) -> Verdict:
    """Answer a sequence that is durable, or that this group makes so."""
    state = progress.state
    if stamp.sequence == state.last_sequence:
        if entry.content_hash != state.last_hash:
            return Refuse(
                error=InvalidArgument(
                    f"Sequence {stamp.sequence} is committed with other bytes; new content needs the next sequence.",
                    reason=Reason.SEQUENCE_REUSED,
                    metadata={"expected_sequence": str(state.last_sequence + 1)},
                )
            )
        if progress.rank >= 0:
            return Repeat(rank=progress.rank)
        return Answer(answer=replace(state.last, replayed=True))
    # Only the last batch's answer is kept; an older one is durable at or before it.
    return Answer(answer=replace(state.last, replayed=True, receipt=b""))


def _admit_change(entry: NewEntry, change: QuarantineChange, waiting: set[RowKey], accepted: Accept) -> Verdict:
    """Let a change pass if each of its rows is still in quarantine, and nobody before it in the group takes one."""
    named = {(entry.tenant, quarantine_id) for quarantine_id in change.ids()}
    if not named <= waiting:
        return Refuse(
            error=FailedPrecondition(
                f"{len(named - waiting)} of {len(named)} rows named are not in quarantine any more; list them again.",
                reason=Reason.QUARANTINE_CHANGED,
            )
        )
    waiting -= named
    return accepted


def _admit_request(
    entry: NewEntry, requests: Mapping[Key, RequestState], fresh: dict[Key, tuple[bytes, int]], rank: int
) -> Verdict:
    key = (entry.tenant, entry.request_id)
    seen = requests.get(key)
    known_hash = seen.content_hash if seen is not None else fresh[key][0] if key in fresh else None
    if known_hash is None:
        fresh[key] = (entry.content_hash, rank)
        return Accept(rank=rank)
    if known_hash != entry.content_hash:
        return Refuse(
            error=InvalidArgument(
                "This request_id was used before with other content; choose a new one for new content.",
                reason=Reason.REQUEST_ID_REUSED,
            )
        )
    if seen is not None:
        return Answer(answer=replace(seen.answer, replayed=True))
    return Repeat(rank=fresh[key][1])
