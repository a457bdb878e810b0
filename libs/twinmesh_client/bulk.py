"""Many twins at once: the order in which they are sent, the parts in which they go, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import error_pb2, twin_pb2
from twinmesh_client.registry_mapping import twin_to_message
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.registry import Twin

MAX_TWINS: Final = 10_000
"""Twins of one call."""
PART_TWINS: Final = 2_000
PART_BYTES: Final = 3 * 1024 * 1024
"""Bounds of one request where twins may go in several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinResult:
    """What became of one twin of a bulk creation.

    Attributes:
        twin_id: the twin.
        outcome: CREATED, EXISTED (with `if_absent`), REFUSED, or LEFT_OUT (with `all_or_nothing`).
        reason: why it was refused, for programs, e.g. ``TWIN_TYPE_NOT_FOUND``.
        message: what is wrong and what would be right.
    """

    twin_id: str
    outcome: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStep:
    """One part of a twin and what becomes of it: CARRIED, CONVERTED, DEFAULTED, DROPPED or BLOCKS."""

    part: str
    effect: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinMigration:
    """What a migration makes of one twin.

    Attributes:
        twin_id: the twin.
        from_version: the version it came from.
        to_version: the version migrated to.
        outcome: MIGRATED, UP_TO_DATE, BLOCKED or NOT_FOUND.
        steps: part by part.
    """

    twin_id: str
    from_version: int
    to_version: int
    outcome: str
    steps: tuple[MigrationStep, ...]


def targets_first(twins: Sequence[Twin]) -> list[Twin]:
    """Return the twins so that the target of a relationship comes before those that point to it, where there is a way.

    Twins that point to each other in a circle stay in the order given, after what they point to outside of it.
    """
    index = {twin.twin_id: i for i, twin in enumerate(twins)}
    waiting = [
        len({e.target_twin_id for e in twin.relationships if index.get(e.target_twin_id, i) != i})
        for i, twin in enumerate(twins)
    ]
    pointed_at: dict[int, list[int]] = {}
    for i, twin in enumerate(twins):
        for target in {e.target_twin_id for e in twin.relationships}:
            place = index.get(target, i)
            if place != i:
                pointed_at.setdefault(place, []).append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    for i in ready:
        for follower in pointed_at.get(i, ()):
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)
    done = set(ready)
    return [twins[i] for i in (*ready, *(i for i in range(len(twins)) if i not in done))]


def parts(twins: Sequence[Twin], *, together: bool) -> Iterator[list[twin_pb2.Twin]]:
    """Yield the twins as messages, in parts that fit a request each.

    Args:
        twins: in the order in which they go.
        together: they must go in one.

    Raises:
        InvalidArgument: there are too many to go together.
    """
    if together:
        if len(twins) > MAX_TWINS:
            raise invalid_field("twins", f"with all_or_nothing at most {MAX_TWINS:,} twins can be created at once")
        yield [twin_to_message(twin) for twin in twins]
        return
    part: list[twin_pb2.Twin] = []
    size = 0
    for twin in twins:
        message = twin_to_message(twin)
        bytes_ = message.ByteSize() + 8
        if part and (len(part) >= PART_TWINS or size + bytes_ > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += bytes_
    if part:
        yield part


def results(response: statesync_pb2.CreateTwinsResponse) -> Iterator[TwinResult]:
    """Yield what became of each twin."""
    for result in response.results:
        yield TwinResult(
            twin_id=result.twin_id,
            outcome=statesync_pb2.TwinOutcome.Name(result.outcome).removeprefix("TWIN_OUTCOME_"),
            reason=error_pb2.ErrorReason.Name(result.reason).removeprefix("ERROR_REASON_") if result.reason else "",
            message=result.message,
        )


def migrations(response: statesync_pb2.MigrateTwinsResponse) -> Iterator[TwinMigration]:
    """Yield what a migration makes of each twin."""
    for migration in response.migrations:
        yield TwinMigration(
            twin_id=migration.twin_id,
            from_version=migration.from_version,
            to_version=response.to_version,
            outcome=statesync_pb2.MigrationOutcome.Name(migration.outcome).removeprefix("MIGRATION_OUTCOME_"),
            steps=tuple(
                MigrationStep(
                    part=step.part,
                    effect=statesync_pb2.MigrationEffect.Name(step.effect).removeprefix("MIGRATION_EFFECT_"),
                    detail=step.detail,
                )
                for step in migration.steps
            ),
        )


def raise_first(found: Iterable[TwinResult]) -> None:
    """Raise `InvalidArgument` for the first twin that was refused, if one was."""
    refused = [result for result in found if result.outcome == "REFUSED"]
    if refused:
        more = f" ({len(refused):,} twins were refused)" if len(refused) > 1 else ""
        first = refused[0]
        raise InvalidArgument(f"{first.twin_id}: {first.message}{more}", reason=first.reason or None)
