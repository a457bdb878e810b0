"""Rows of the log's tables to values and back; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import from_datetime, to_datetime
from twinmesh_storage.adapters.postgres import log_sql as sql
from twinmesh_storage.adapters.postgres.copying import bytea_head, int2, int4, int8, row_head, text, timestamptz
from twinmesh_storage.domain.admission import Accept, Answer, Key, ProducerState, Refuse, RequestState, Verdict
from twinmesh_storage.domain.entries import (
    Appended,
    EntryKind,
    LogEntry,
    NewEntry,
    QuarantineChange,
    QuarantineState,
)


def producer_moves(accepted: Sequence[tuple[NewEntry, int]], commit_us: int) -> dict[str, Any] | None:
    """Return by which columns high-water rows move: the newest accepted batch of each producer; None = no batch."""
    newest: dict[Key, tuple[NewEntry, int]] = {}
    for entry, offset in accepted:
        if entry.producer is not None:
            newest[entry.tenant, entry.producer.producer_id] = (entry, offset)
    if not newest:
        return None
    moves = [newest[key] for key in sorted(newest)]
    stamps = [entry.producer for entry, _ in moves if entry.producer is not None]
    return {
        "tenant": [entry.tenant for entry, _ in moves],
        "producer_id": [stamp.producer_id for stamp in stamps],
        "epoch": [stamp.epoch for stamp in stamps],
        "sequence": [stamp.sequence for stamp in stamps],
        "hash": [entry.content_hash for entry, _ in moves],
        "offset": [offset for _, offset in moves],
        "receipt": [entry.receipt for entry, _ in moves],
        "commit_time": to_datetime(commit_us),
    }


def request_columns(accepted: Sequence[tuple[NewEntry, int]], commit_us: int, keep_s: float) -> dict[str, Any] | None:
    """Return the columns of the request ids to be remembered; None = there is none."""
    named = [(entry, offset) for entry, offset in accepted if entry.request_id]
    if not named:
        return None
    return {
        "tenant": [entry.tenant for entry, _ in named],
        "request_id": [entry.request_id for entry, _ in named],
        "hash": [entry.content_hash for entry, _ in named],
        "offset": [offset for _, offset in named],
        "receipt": [entry.receipt for entry, _ in named],
        "expires": [entry.kind is EntryKind.OBSERVATIONS for entry, _ in named],
        "commit_time": to_datetime(commit_us),
        "keep_s": keep_s,
    }


def quarantine_moves(tenant: str, change: QuarantineChange, offset: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the statements, with their arguments, that change rows in quarantine."""
    moves: list[tuple[str, dict[str, Any]]] = [
        (
            sql.MOVE_QUARANTINE,
            {
                "tenant": tenant,
                "ids": list(ids),
                "state": int(state),
                "offset": offset,
                "principal": change.principal,
                "comment": change.comment,
            },
        )
        for ids, state in (
            (change.replayed, QuarantineState.REPLAYED),
            (change.discarded, QuarantineState.DISCARDED),
        )
        if ids
    ]
    if change.kept:
        kept = {
            "tenant": tenant,
            "ids": [verdict.quarantine_id for verdict in change.kept],
            "reasons": [verdict.reason for verdict in change.kept],
            "messages": [verdict.message for verdict in change.kept],
        }
        moves.append((sql.JUDGE_QUARANTINE, kept))
    return moves


def producer_states(rows: Sequence[tuple[Any, ...]]) -> dict[Key, ProducerState]:
    """Return high-water rows as the rules read them."""
    return {
        (tenant, producer_id): ProducerState(
            epoch=epoch,
            last_sequence=last_sequence,
            last_hash=last_hash,
            last=Appended(
                offset=last_offset,
                commit_time_unix_us=from_datetime(last_commit_time) if last_commit_time is not None else 0,
                receipt=last_receipt,
            ),
        )
        for tenant, producer_id, epoch, last_sequence, last_hash, last_offset, last_commit_time, last_receipt in rows
    }


def request_states(rows: Sequence[tuple[Any, ...]]) -> dict[Key, RequestState]:
    """Return request rows as the rules read them."""
    return {
        (tenant, request_id): RequestState(
            content_hash=content_hash,
            answer=Appended(offset=offset, commit_time_unix_us=from_datetime(commit_time), receipt=receipt),
        )
        for tenant, request_id, content_hash, offset, commit_time, receipt in rows
    }


def new_entries(
    group: Sequence[NewEntry], verdicts: Sequence[Verdict], head: int, commit_us: int
) -> tuple[LogEntry, ...]:
    """Return the accepted entries with their offsets, in order."""
    return tuple(
        LogEntry(
            offset=head + 1 + verdict.rank,
            tenant=entry.tenant,
            kind=entry.kind,
            commit_time_unix_us=commit_us,
            point_count=entry.point_count,
            body=entry.body,
            segments=entry.segments,
        )
        for entry, verdict in zip(group, verdicts, strict=True)
        if isinstance(verdict, Accept)
    )


def answers(
    group: Sequence[NewEntry], verdicts: Sequence[Verdict], entries: Sequence[LogEntry]
) -> tuple[Appended | TwinmeshError, ...]:
    """Return the answer to each entry of a group."""
    answers: list[Appended | TwinmeshError] = []
    for entry, verdict in zip(group, verdicts, strict=True):
        if isinstance(verdict, Refuse):
            answers.append(verdict.error)
        elif isinstance(verdict, Answer):
            answers.append(verdict.answer)
        else:
            at = entries[verdict.rank]
            answers.append(
                Appended(
                    offset=at.offset,
                    commit_time_unix_us=at.commit_time_unix_us,
                    replayed=not isinstance(verdict, Accept),
                    receipt=entry.receipt,
                )
            )
    return tuple(answers)


def log_pieces(group: Sequence[NewEntry], verdicts: Sequence[Verdict], entries: Sequence[LogEntry]) -> list[bytes]:
    """Return the COPY rows of the accepted entries, bodies as pieces of their own."""
    pieces: list[bytes] = []
    accepted = (new for new, verdict in zip(group, verdicts, strict=True) if isinstance(verdict, Accept))
    for new, entry in zip(accepted, entries, strict=True):
        body = new.at_rest or new.body
        pieces.append(
            row_head(len(sql.LOG_COLUMNS))
            + text(entry.tenant)
            + int8(entry.offset)
            + int2(entry.kind)
            + timestamptz(entry.commit_time_unix_us)
            + int4(entry.point_count)
            + bytea_head(len(body))
        )
        pieces.append(body)
    return pieces


def log_columns(group: Sequence[NewEntry], verdicts: Sequence[Verdict], entries: Sequence[LogEntry]) -> dict[str, Any]:
    """Return the columns of the accepted entries, of which there must be one; all have one commit time."""
    accepted = [new for new, verdict in zip(group, verdicts, strict=True) if isinstance(verdict, Accept)]
    return {
        "tenant": [entry.tenant for entry in entries],
        "offset": [entry.offset for entry in entries],
        "kind": [int(entry.kind) for entry in entries],
        "points": [entry.point_count for entry in entries],
        "body": [new.at_rest or new.body for new in accepted],
        "commit_time": to_datetime(entries[0].commit_time_unix_us),
    }
