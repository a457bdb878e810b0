"""What the kept checkpoint lacks: kept by every process, so that any can go on saving where another died."""

from __future__ import annotations

from typing import Final

from twinmesh_statesync.domain.checkpoint import Captured, Position

_PIECES: Final = 8


class Backlog:
    """Everything that changed since a position at or before the kept checkpoint's, in pieces.

    A process that does not save drops the pieces which whoever saves has covered; one that takes the duty over merges
    the rest into its first save. Folds of one log are equal, so it does not matter who captured what.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[Position, Captured]] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, through: Position, captured: Captured) -> None:
        """Add what changed since the last piece, up to a position."""
        self._pieces.append((through, captured))
        if len(self._pieces) > _PIECES:
            # Whoever should save does not: as one piece it is bounded by what the fold itself holds.
            (_, first), (position, second), *rest = self._pieces
            self._pieces = [(position, second.after(first)), *rest]

    def forget(self, kept: Position) -> None:
        """Drop the pieces that a kept checkpoint covers."""
        self._pieces = [
            piece for piece in self._pieces if piece[0].incarnation != kept.incarnation or piece[0].offset > kept.offset
        ]

    def whole(self) -> Captured:
        """Return all pieces as one; there must be at least one."""
        (_, merged), *rest = self._pieces
        for _, captured in rest:
            merged = captured.after(merged)
        return merged

    def clear(self) -> None:
        """Drop all of them."""
        self._pieces.clear()
