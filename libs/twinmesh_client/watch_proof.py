"""The proof that a watch missed nothing: dense revisions of each twin, and offsets that only increase."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twinmesh_client.replicas import Position, WatchEvent
from twinmesh_core.errors import DataLoss

_WHOLE = frozenset({"SNAPSHOT", "ENTERED"})
"""Kinds of events that tell a twin's whole state: what came before is not needed."""
_GONE = frozenset({"DELETED", "LEFT"})


class GapDetected(DataLoss):
    """The server told a twin's revision that does not follow on the last one seen: something was missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchProof:
    """What a watch told so far, each event of it checked.

    Attributes:
        events: changes and snapshots of twins.
        twins: twins alive, of those that were told.
        gaps: revisions that did not follow on one another; always 0, since the first one raises `GapDetected`.
        resumes: connections after the first.
        resets: times that the changes could not be told, and a snapshot came instead.
        position: everything up to here was told; None before a snapshot is complete.
    """

    events: int = 0
    twins: int = 0
    gaps: int = 0
    resumes: int = 0
    resets: int = 0
    position: Position | None = None


class RevisionProof:
    """Checks that the dense revisions of each twin follow on one another, and that offsets increase.

    Where a filter or a mask leaves changes out, each event names the offset since which none was, and that must not lie
    beyond what is known of the twin.

    Args:
        after: where the watch begins; None = with a snapshot.
        chosen: whether the watch has a filter or a mask.
    """

    def __init__(self, after: Position | None = None, *, chosen: bool = False) -> None:
        self._chosen = chosen
        self._revisions: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._alive: set[str] = set()
        self._last_offset = 0
        self._proof = WatchProof(position=after)

    @property
    def proof(self) -> WatchProof:
        """What was checked so far."""
        return replace(self._proof, twins=len(self._alive))

    def reset(self) -> None:
        """Note that the changes could not be told: a new snapshot begins."""
        self._proof = replace(self._proof, resets=self._proof.resets + 1, position=None)

    def resumed(self) -> None:
        """Note another connection."""
        self._proof = replace(self._proof, resumes=self._proof.resumes + 1)

    def reached(self, through: Position) -> None:
        """Note that everything up to a position was told."""
        self._proof = replace(self._proof, position=through)

    def forget(self) -> dict[str, int]:
        """Forget every twin; returns the revisions of those that were alive."""
        alive = {twin_id: self._revisions[twin_id] for twin_id in self._alive}
        self._revisions.clear()
        self._offsets.clear()
        self._alive.clear()
        self._last_offset = 0
        return alive

    def check(self, event: WatchEvent) -> None:
        """Take one event; raises `GapDetected` when one is missing, repeated or out of order."""
        last = self._revisions.get(event.twin_id)
        whole = event.kind in _WHOLE
        follows = last is None or whole or event.previous_revision == last
        if self._chosen:
            follows = event.kind == "SNAPSHOT" or event.previous_offset <= self._known(event.twin_id)
        if not follows or event.revision < event.previous_revision:
            raise self._gap(
                event,
                f"{event.twin_id}: revision {event.revision} (after {event.previous_revision}) arrived at offset "
                f"{event.offset}, but the last one seen was {last}"
                + (f", and nothing says what came after offset {self._known(event.twin_id)}." if self._chosen else "."),
            )
        if event.kind != "SNAPSHOT":
            if event.offset < self._last_offset or (not whole and event.offset <= self._offsets.get(event.twin_id, -1)):
                raise self._gap(
                    event,
                    f"{event.twin_id}: offset {event.offset} arrived after offset {self._last_offset} was told.",
                )
            self._last_offset = event.offset
        self._revisions[event.twin_id] = event.revision
        self._offsets[event.twin_id] = event.offset
        if event.kind in _GONE:
            self._alive.discard(event.twin_id)
        else:
            self._alive.add(event.twin_id)
        self._proof = replace(self._proof, events=self._proof.events + 1)

    def _known(self, twin_id: str) -> int:
        """Return the offset up to which everything of a twin was told."""
        reached = self._proof.position
        return max(self._offsets.get(twin_id, 0), reached.offset if reached is not None else 0)

    def _gap(self, event: WatchEvent, text: str) -> GapDetected:
        self._proof = replace(self._proof, gaps=self._proof.gaps + 1)
        return GapDetected(text, metadata={"twin_id": event.twin_id, "offset": str(event.offset)})
