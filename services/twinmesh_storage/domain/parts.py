"""Parts: what a history store hands out, whatever form it keeps rows in.

A part is the readable rows of one series over a span of time. It says what it holds without unpacking anything, and
unpacks when asked; a form that keeps statistics beside its rows gives them, another gives none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.rows import Rows
from twinmesh_storage.domain.series import Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of the GOOD values of a part: n of them, their extremes, sum, sum of squared deviations, first and last.

    Source of `m2` and of how two are combined: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances" (1979).
    """

    minimum: float
    maximum: float
    sum: float
    m2: float
    first: float
    last: float


class Part(Protocol):
    """Readable rows of one series, one per event time, packed or not."""

    @property
    def series_id(self) -> int:
        """The series they are of."""
        ...

    @property
    def t0(self) -> int:
        """First event time, microseconds since the Unix epoch."""
        ...

    @property
    def t1(self) -> int:
        """Last event time, included."""
        ...

    @property
    def n(self) -> int:
        """Number of rows, at least one."""
        ...

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows by quality GOOD, UNCERTAIN, BAD."""
        ...

    @property
    def max_offset(self) -> int:
        """Highest offset of its rows."""
        ...

    @property
    def statistics(self) -> Statistics | None:
        """Statistics of its GOOD numbers; None = the form keeps none, or there is no such number: look at the rows."""
        ...

    def rows(self) -> Rows:
        """Return the rows, by event time; unpacks at each call, and big parts take milliseconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowsPart:
    """A part whose rows are at hand, without statistics."""

    unpacked: Rows

    @property
    def series_id(self) -> int:
        """See `Part`."""
        return int(self.unpacked.series[0])

    @property
    def t0(self) -> int:
        """See `Part`."""
        return int(self.unpacked.ts[0])

    @property
    def t1(self) -> int:
        """See `Part`."""
        return int(self.unpacked.ts[-1])

    @property
    def n(self) -> int:
        """See `Part`."""
        return len(self.unpacked)

    @property
    def counts(self) -> tuple[int, int, int]:
        """See `Part`."""
        _, good, uncertain, bad = np.bincount(self.unpacked.quality, minlength=4).tolist()
        return good, uncertain, bad

    @property
    def max_offset(self) -> int:
        """See `Part`."""
        return int(self.unpacked.offset.max())

    @property
    def statistics(self) -> Statistics | None:
        """See `Part`."""
        return None

    def rows(self) -> Rows:
        """See `Part`."""
        return self.unpacked


SUMMARY: Final = np.dtype(
    [(name, "i8") for name in ("series_id", "t0", "t1", "good", "uncertain", "bad", "max_offset")]
    + [(name, "f8") for name in ("minimum", "maximum", "sum", "m2", "first", "last")]
)
"""A part without its rows; the statistics are NaN where there is no GOOD number."""
Summaries = npt.NDArray[np.void]
"""Records of `SUMMARY`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSummaries:
    """Summaries of parts, ending where the answer would become too big; `done` and `until` as in `PartPage`."""

    records: Summaries
    done: int
    until: int = 0


def summaries_of(records: Summaries, series: Sequence[Series], *, truncated: bool) -> PartSummaries:
    """Return the page of these summaries, in order; as `page_of`."""
    if not truncated:
        return PartSummaries(records=records, done=len(series))
    last = int(records["series_id"][-1])
    index = next(i for i, one in enumerate(series) if one.series_id == last)
    if index:
        return PartSummaries(records=records[records["series_id"] != last], done=index)
    return PartSummaries(records=records[:-1], done=0, until=int(records["t0"][-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPage:
    """An answer that ends where it would become too big.

    Attributes:
        parts: in the order of the series asked for, then of time; parts of one series do not overlap. They may reach
            beyond the range asked for and beyond `until`: cut.
        done: so many of the series asked for, from the first on, are complete. At least one, unless the first has
            more rows than fit.
        until: with done = 0: the parts are of the first series alone, and complete before this event time, which lies
            after the start asked for.
    """

    parts: Sequence[Part]
    done: int
    until: int = 0


def page_of(parts: Sequence[Part], series: Sequence[Series], *, truncated: bool) -> PartPage:
    """Return the page of these parts, in order; `truncated` = the last one, of at least two, may not be all there is.

    Any part that was left out begins at or after the last one given.
    """
    if not truncated:
        return PartPage(parts=parts, done=len(series))
    last = parts[-1]
    index = next(i for i, one in enumerate(series) if one.series_id == last.series_id)
    if index:
        return PartPage(parts=[part for part in parts if part.series_id != last.series_id], done=index)
    return PartPage(parts=parts[:-1], done=0, until=last.t0)
