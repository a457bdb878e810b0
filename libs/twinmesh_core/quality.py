"""How far a value can be trusted, and why the ingestion pipeline lowered or refused it."""

from __future__ import annotations

from enum import IntEnum


class Quality(IntEnum):
    """Trust in a value, in the sense of OPC UA; numbers equal ``twinmesh.type.v1.Quality`` and the quality bytes.

    A greater number is less trust, so "the worse of two" is `max`.
    """

    UNSPECIFIED = 0
    """Not stated by the sender; ingestion takes GOOD. Never stored."""
    GOOD = 1
    """The value can be used."""
    UNCERTAIN = 2
    """The value may be wrong."""
    BAD = 3
    """The value must not be used; it is kept for the record."""


class FlagReason(IntEnum):
    """Why an observation was flagged or quarantined; numbers equal ``twinmesh.type.v1.FlagReason``."""

    UNSPECIFIED = 0
    UNKNOWN_TWIN = 1
    UNKNOWN_CHANNEL = 2
    INCOMPATIBLE_UNIT = 3
    NOT_FINITE = 4
    TIME_IN_FUTURE = 5
    TIME_IN_PAST = 6
    WRONG_KIND = 7
    MALFORMED_VALUE = 8
    UNKNOWN_HANDLE = 9
    OUT_OF_RANGE = 10
    RATE_OF_CHANGE = 11
    SPIKE = 12
    STUCK = 13
    BY_SENDER = 14
    INVALID_QUALITY = 15
    REFUSED_BATCH = 16

    @property
    def quarantines(self) -> bool:
        """Whether a row with this reason is kept aside instead of stored with a lower quality."""
        return self in _QUARANTINES


_QUARANTINES = frozenset(
    {
        FlagReason.UNKNOWN_TWIN,
        FlagReason.UNKNOWN_CHANNEL,
        FlagReason.INCOMPATIBLE_UNIT,
        FlagReason.NOT_FINITE,
        FlagReason.TIME_IN_FUTURE,
        FlagReason.TIME_IN_PAST,
        FlagReason.WRONG_KIND,
        FlagReason.MALFORMED_VALUE,
        FlagReason.UNKNOWN_HANDLE,
        FlagReason.INVALID_QUALITY,
        FlagReason.REFUSED_BATCH,
    }
)
