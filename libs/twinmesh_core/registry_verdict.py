"""What the registry decides about an entry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.registry import Twin, TwinType


class Outcome(Enum):
    """What the fold made of an entry."""

    ACCEPTED = "accepted"
    """It took effect."""
    NO_OP = "no-op"
    """What it asks for is already so; its writer is answered as if it had been accepted."""
    REJECTED = "rejected"
    """Its condition does not hold; it has no effect and its writer gets the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The fold's decision about one entry.

    Attributes:
        outcome: what became of it.
        error: why it was rejected; None otherwise.
        twin_type: the type it created or found, as it was written, for entries about types.
        twin: the twin it created, found or deleted, for entries about twins.
    """

    outcome: Outcome
    error: TwinmeshError | None = None
    twin_type: TwinType | None = None
    twin: Twin | None = None

    @property
    def effective(self) -> bool:
        """Whether state changed."""
        return self.outcome is Outcome.ACCEPTED

    def unless_rejected(self) -> Verdict:
        """Return this; raises its error if it is a rejection."""
        if self.error is not None:
            raise self.error
        return self
