"""The spool's one small file of facts: whose it is, and how its numbers become the producer's sequences."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from twinmesh_core.errors import DataLoss, FailedPrecondition

_FORMAT: Final = 1
_NAME: Final = "state.json"


@dataclass(slots=True, kw_only=True)
class State:
    """How numbers map to sequences.

    Attributes:
        producer_id: whose batches these are.
        base: sequence of number n is base + n - (lost numbers up to n); None before the first contact.
        lost: ranges of numbers, both ends included and ascending, that have no sequence: damaged on disk and never
            sent, or refused by the mesh.
        forgotten: lost numbers that are no longer listed, but taken off `base`.
        refused: batches that the mesh refused; they count among the lost ones.
        refused_points: their rows.
    """

    producer_id: str
    base: int | None = None
    lost: list[tuple[int, int]] = field(default_factory=list)
    forgotten: int = 0
    refused: int = 0
    refused_points: int = 0

    @property
    def lost_count(self) -> int:
        """Batches that have no sequence."""
        return self.forgotten + sum(last - first + 1 for first, last in self.lost)

    def is_lost(self, number: int) -> bool:
        """Return whether a number has no sequence."""
        return any(first <= number <= last for first, last in self.lost)

    def forget(self, number: int) -> None:
        """List lost numbers below this one no longer: nobody asks for sequences before it."""
        if self.base is None:
            return
        gone = [(first, last) for first, last in self.lost if last < number]
        count = sum(last - first + 1 for first, last in gone)
        self.lost = self.lost[len(gone) :]
        self.base -= count
        self.forgotten += count

    def sequence_of(self, number: int) -> int:
        """Return the producer's sequence of a number; for a lost one that of the whole one before it."""
        gone = sum(min(last, number) - first + 1 for first, last in self.lost if first <= number)
        return (self.base or 0) + number - gone

    def number_of(self, sequence: int) -> int:
        """Return the largest number whose sequence is at most this one."""
        number = sequence - (self.base or 0)
        for first, last in self.lost:
            if first <= number + 1:
                number += last - first + 1
        return number

    def lose(self, first: int, last: int) -> bool:
        """Note a lost range; whether it was news."""
        if any(a <= first and last <= b for a, b in self.lost):
            return False
        kept = [(a, b) for a, b in self.lost if b < first - 1 or a > last + 1]
        joined = [r for r in self.lost if r not in kept]
        self.lost = sorted([*kept, (min([first, *(a for a, _ in joined)]), max([last, *(b for _, b in joined)]))])
        return True


def load(directory: Path, producer_id: str) -> State:
    """Return the state of a spool, fresh where there is none.

    Raises:
        FailedPrecondition: it is another producer's.
        DataLoss: the file does not fit its checksum.
    """
    try:
        text = (directory / _NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return State(producer_id=producer_id)
    try:
        document = json.loads(text)
        body = document["state"]
        if document["crc32"] != _checksum(body) or document["format"] != _FORMAT:
            raise ValueError
        state = State(
            producer_id=str(body["producer_id"]),
            base=None if body["base"] is None else int(body["base"]),
            lost=[(int(first), int(last)) for first, last in body["lost"]],
            forgotten=int(body.get("forgotten", 0)),
            refused=int(body.get("refused", 0)),
            refused_points=int(body.get("refused_points", 0)),
        )
    except (ValueError, KeyError, TypeError):
        raise DataLoss(
            "The spool's state file is damaged, so it is not known which of its batches the mesh has. Put the "
            "directory aside and begin a new one; its segment files still hold the batches.",
            metadata={"spool": directory.name},
        ) from None
    if state.producer_id != producer_id:
        raise FailedPrecondition(
            f"The spool holds batches of the producer {state.producer_id!r}, not of {producer_id!r}; give each "
            "producer a directory of its own.",
            metadata={"spool": directory.name, "producer_id": state.producer_id},
        )
    return state


def save(directory: Path, state: State) -> None:
    """Replace the file at once and for good: after a crash the old or the new one is there."""
    body = {
        "producer_id": state.producer_id,
        "base": state.base,
        "lost": [list(pair) for pair in state.lost],
        "forgotten": state.forgotten,
        "refused": state.refused,
        "refused_points": state.refused_points,
    }
    text = json.dumps({"format": _FORMAT, "crc32": _checksum(body), "state": body})
    partial = directory / f".{_NAME}"
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / _NAME)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make names that were created or removed in a directory durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checksum(body: Any) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
