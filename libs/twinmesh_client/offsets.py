"""Offsets that know of which log they are: told by one answer, they can be sent with the next question as they are."""

from __future__ import annotations

from twinmesh_core.errors import invalid_field


class Offset(int):
    """A position in the log, a plain number in every respect, which remembers the incarnation of the log that told it.

    A log that was restored to an earlier point gives offsets again. Sent as `min_offset` or as-of offset, one of
    another incarnation is refused (`FailedPrecondition`, LOG_REWOUND) instead of quietly meaning something else.
    """

    incarnation: str

    def __new__(cls, value: int, incarnation: str = "") -> Offset:
        """Return an offset; without an incarnation it is checked against none."""
        made = super().__new__(cls, value)
        made.incarnation = incarnation
        return made


def incarnation_of(*offsets: int) -> str:
    """Return the incarnation that offsets of one question are of; "" = they do not know.

    Raises:
        InvalidArgument: they are of different ones.
    """
    known = {offset.incarnation for offset in offsets if isinstance(offset, Offset) and offset and offset.incarnation}
    if len(known) > 1:
        raise invalid_field("min_offset", "is of another incarnation of the log than the as-of offset")
    return next(iter(known), "")
