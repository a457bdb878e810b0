"""What kind of quantity a channel carries, which column type holds it, and which stages judge it."""

from __future__ import annotations

from enum import IntEnum


class ChannelKind(IntEnum):
    """The kinds of channels; numbers equal ``twinmesh.type.v1.ChannelKind`` (a test holds them together)."""

    UNSPECIFIED = 0
    GAUGE = 1
    """A measured quantity (float64): may be interpolated and averaged."""
    COUNTER = 2
    """A running total (float64) that only rises but may reset: rates are reset-aware."""
    STATE = 3
    """A discrete state as a number (int64): held, never interpolated."""
    BOOL = 4
    """True or false: held, never interpolated."""
    TEXT = 5
    """UTF-8 text."""
    JSON = 6
    """A JSON document (RFC 8259) as UTF-8."""

    @property
    def numeric(self) -> bool:
        """Whether windows and aggregates can hold its values as float64."""
        return ChannelKind.GAUGE <= self <= ChannelKind.BOOL

    @property
    def has_unit(self) -> bool:
        """Whether its values are quantities that can be converted between units."""
        return self in (ChannelKind.GAUGE, ChannelKind.COUNTER)

    @classmethod
    def of(cls, number: int) -> ChannelKind:
        """Return the kind of this number; numbers unknown here (a newer peer's) read as UNSPECIFIED."""
        return _KIND_BY_NUMBER.get(number, cls.UNSPECIFIED)


_KIND_BY_NUMBER = {int(kind): kind for kind in ChannelKind}


class PipelineStage(IntEnum):
    """A stage of ingestion's pipeline that a channel may do without; numbers as in ``twinmesh.type.v1``."""

    UNSPECIFIED = 0
    TIME = 1
    """Event times far from the receive time are quarantined."""
    REPETITION = 2
    """Repetitions are dropped."""
    RANGE = 3
    RATE = 4
    SPIKE = 5
    STUCK = 6
    DEADBAND = 7
