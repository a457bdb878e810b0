"""What a conversion could not carry as it was, with the place and the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from twinmesh_core.errors import FieldViolation, InvalidArgument


class Loss(Enum):
    """How much of it is left."""

    CHANGED = "changed"
    """It is carried in another form: renamed, flattened, moved."""
    LOST = "lost"
    """The other side has no place for it."""
    INVALID = "invalid"
    """It breaks a rule of DTDL v3; nothing is converted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not carried as it was.

    Attributes:
        pointer: where it stands in the document converted from, as a JSON pointer (RFC 6901).
        loss: how much of it is left.
        reason: why, for a person.
    """

    pointer: str
    loss: Loss
    reason: str


class Findings:
    """Gathers findings in the order in which they are met."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self._known: set[Finding] = set()

    def changed(self, pointer: str, reason: str) -> None:
        """Note what is carried in another form."""
        self._add(pointer, Loss.CHANGED, reason)

    def lost(self, pointer: str, reason: str) -> None:
        """Note what is not carried."""
        self._add(pointer, Loss.LOST, reason)

    def invalid(self, pointer: str, reason: str) -> None:
        """Note what breaks a rule."""
        self._add(pointer, Loss.INVALID, reason)

    def _add(self, pointer: str, loss: Loss, reason: str) -> None:
        finding = Finding(pointer=pointer, loss=loss, reason=reason)
        if finding not in self._known:  # a schema may be read more than once
            self._known.add(finding)
            self.found.append(finding)

    def refuse_invalid(self) -> None:
        """Raise `InvalidArgument` that names every broken rule, if one is broken."""
        refuse(finding for finding in self.found if finding.loss is Loss.INVALID)


def refuse(invalid: Iterable[Finding]) -> None:
    """Raise `InvalidArgument` for findings, if there are any."""
    found = list(invalid)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidArgument(
            f"{found[0].pointer or '/'}: {found[0].reason}{more}",
            field_violations=[FieldViolation(field=f.pointer or "/", description=f.reason) for f in found],
        )


def at(pointer: str, *parts: str | int) -> str:
    """Return the JSON pointer of something below `pointer`."""
    return pointer + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
