"""What a follower may be told, and the judge of it: no gap, no duplicate, in order, and a place that is true."""

from __future__ import annotations

import json
from collections.abc import Sequence

from twinmesh_storage.domain.entries import LogEntry
from twinmesh_storage.domain.follow_filter import Filter
from twinmesh_storage.domain.frame_shelf import Frame


def as_json(frame: Frame, incarnation: str) -> bytes:
    """Encode what matters of a frame: its entries, the place it leads to, the head, and whose they are."""
    entries = [[e.offset, e.body.decode()] for e in frame.entries]
    return json.dumps([entries, frame.through, frame.head, incarnation]).encode()


def twins_of(entry: LogEntry) -> frozenset[str] | None:
    """Read the twins that a test's body names: its words; none = of no twin."""
    words = entry.body.decode().split()[1:]
    return frozenset(words) or None


def violations(told: Sequence[bytes], log: Sequence[LogEntry], wanted: Filter, after: int) -> list[str]:
    """Return what is wrong with the frames that a follower got, lives strung together, against the log as it is."""
    found: list[str] = []
    place = after
    seen: list[tuple[int, str]] = []
    for data in told:
        entries, through, head, _ = json.loads(data)
        if through < place:
            found.append(f"went back from {place} to {through}")
        if head < through:
            found.append(f"promises {through}, beyond the head {head}")
        for offset, _ in entries:
            if not place < offset <= through:
                found.append(f"{offset} is not within {place} to {through}")
        seen += [(offset, body) for offset, body in entries]
        place = max(place, through)
    expected = [(e.offset, e.body.decode()) for e in log if after < e.offset <= place and wanted.passes(e, twins_of)]
    if seen != expected:
        gaps = sorted(set(expected) - set(seen))
        twice = sorted({s for s in seen if seen.count(s) > 1})
        found.append(f"gaps {gaps[:5]}, twice {twice[:5]}, not asked for {sorted(set(seen) - set(expected))[:5]}")
    return found
