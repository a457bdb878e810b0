"""What a connector is doing, counted: for a line that people read and a document that programs read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from twinmesh_client.aio.writer import Writer


class State(StrEnum):
    """Where a connector is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """Its source failed; it is started again after a pause."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class Status:
    """Counts of one connector; it adds to `rows_read`, `rows_dropped` and `note`, the runner to the rest.

    Attributes:
        name: of the connector.
        state: where it is in its life.
        rows_read: rows handed to the writer.
        rows_dropped: messages or rows of the source that could not be understood, by reason.
        rows_durable: rows that the mesh has acknowledged.
        rows_quarantined: of those, kept aside by the mesh.
        batches_waiting: taken and not yet acknowledged, as of the last line.
        spooled_bytes: of the spool on disk.
        batches_damaged: that were damaged on disk and not sent.
        batches_refused: that the mesh refused as a whole, kept aside in the spool.
        restarts: how often the source was opened again.
        last_error: of the source or the mesh; empty when there was none.
        note: what the connector wants people to know now, e.g. its progress.
    """

    name: str
    state: State = State.STARTING
    rows_read: int = 0
    rows_dropped: dict[str, int] = field(default_factory=dict)
    rows_durable: int = 0
    rows_quarantined: int = 0
    batches_waiting: int = 0
    spooled_bytes: int = 0
    batches_damaged: int = 0
    batches_refused: int = 0
    restarts: int = 0
    last_error: str = ""
    note: str = ""
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(init=False)
    _writer: Writer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    def drop(self, reason: str, count: int = 1) -> None:
        """Count rows that could not be understood; every reason is shown, so let there be few."""
        self.rows_dropped[reason] = self.rows_dropped.get(reason, 0) + count

    def watch(self, writer: Writer) -> None:
        """Tell from now on what this session tells of itself."""
        self._writer = writer

    def _refresh(self) -> None:
        writer = self._writer
        if writer is not None:
            self.batches_waiting = writer.taken - writer.durable
            self.spooled_bytes = writer.spool_bytes
            self.batches_damaged = writer.spool_damaged
            self.batches_refused = writer.refused_count
            if writer.last_refusal is not None:
                self.last_error = writer.last_refusal.message
            if not writer.connected and writer.last_error is not None:
                self.last_error = writer.last_error.message

    def line(self) -> str:
        """Return the whole status in one line."""
        self._refresh()
        seconds = max(self.clock() - self.started_s, 1e-9)
        parts = [
            f"{self.name}: {self.state}",
            f"{seconds:.0f} s",
            f"read {self.rows_read:,} ({self.rows_read / seconds:,.1f}/s)",
            f"durable {self.rows_durable:,}",
        ]
        if self.rows_quarantined:
            parts.append(f"quarantined {self.rows_quarantined:,}")
        if self.batches_waiting:
            parts.append(f"waiting {self.batches_waiting:,} batches")
        if self.spooled_bytes:
            parts.append(f"spool {self.spooled_bytes:,} B")
        if self.batches_damaged:
            parts.append(f"DAMAGED ON DISK {self.batches_damaged:,} batches")
        if self.batches_refused:
            parts.append(f"REFUSED BY THE MESH {self.batches_refused:,} batches")
        if self.rows_dropped:
            parts.append("dropped " + ", ".join(f"{n:,} {why}" for why, n in sorted(self.rows_dropped.items())))
        if self.restarts:
            parts.append(f"restarts {self.restarts}")
        if self.note:
            parts.append(self.note)
        if self.last_error:
            parts.append(f"last error: {self.last_error}")
        return "  ".join(parts)

    def document(self) -> dict[str, Any]:
        """Return the same for programs."""
        self._refresh()
        return {
            "name": self.name,
            "state": str(self.state),
            "rows_read": self.rows_read,
            "rows_dropped": dict(self.rows_dropped),
            "rows_durable": self.rows_durable,
            "rows_quarantined": self.rows_quarantined,
            "batches_waiting": self.batches_waiting,
            "spooled_bytes": self.spooled_bytes,
            "batches_damaged": self.batches_damaged,
            "batches_refused": self.batches_refused,
            "restarts": self.restarts,
            "last_error": self.last_error,
            "note": self.note,
        }
