"""The series catalogue: which (twin, channel) pairs have which durable id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import US_PER_DAY, US_PER_HOUR, US_PER_MINUTE, US_PER_S

_MIN_CELL_POINTS: Final = 1_000
_CELLS_US: Final = (
    10 * US_PER_S,
    US_PER_MINUTE,
    10 * US_PER_MINUTE,
    US_PER_HOUR,
    6 * US_PER_HOUR,
    US_PER_DAY,
    7 * US_PER_DAY,
    28 * US_PER_DAY,
    168 * US_PER_DAY,
    2016 * US_PER_DAY,
)
"""Spans that a block may not leave, each a multiple of the one before, so that partitions can follow them."""
_UNKNOWN_INTERVAL_CELL_US: Final = US_PER_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One (twin, channel) pair with its durable id, never reused.

    Attributes:
        unit: canonical unit of the stored values (UCUM); "" = dimensionless or not a quantity.
        expected_interval_us: how often a value is expected; 0 = not known.
        retention_class: names the rule of how long history is kept; "" = none. The one part that may change: it is
            right when the series is read from the store, and may be out of date in the `Catalogue`.
    """

    tenant: str
    series_id: int
    twin_id: str
    channel: str
    kind: ChannelKind
    unit: str
    expected_interval_us: int
    retention_class: str = ""

    @property
    def cell_us(self) -> int:
        """Span of time that a block of this series may not leave: room for at least about 1,000 expected values."""
        return cell_us(self.expected_interval_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRequest:
    """A series to be found or created.

    Attributes:
        retention_class: the series' class from now on; None = it stays what it is, "" of a new series.
        registry_offset: offset of the registry that says so; a class that was told as of a later one stays.
    """

    twin_id: str
    channel: str
    kind: ChannelKind
    unit: str
    expected_interval_us: int = 0
    retention_class: str | None = None
    registry_offset: int = 0


def cell_us(expected_interval_us: int) -> int:
    """Return the span of a cell for values that come at this interval (0 = not known), in microseconds."""
    if expected_interval_us <= 0:
        return _UNKNOWN_INTERVAL_CELL_US
    wanted = expected_interval_us * _MIN_CELL_POINTS
    return next((span for span in _CELLS_US if span >= wanted), _CELLS_US[-1])


def check_same(request: SeriesRequest, known: Series, field: str) -> None:
    """Refuse a request whose kind or unit differs from what the series has.

    Raises:
        InvalidArgument: naming the field, what the series has and the remedy.
    """
    if request.kind is not known.kind:
        raise invalid_field(
            f"{field}.kind",
            f"series {known.twin_id}/{known.channel} is {known.kind.name}; the kind of a series never changes, "
            "use another channel name",
        )
    if request.unit != known.unit:
        raise invalid_field(
            f"{field}.unit",
            f"series {known.twin_id}/{known.channel} is kept in {known.unit or '1'!r}; convert to it, "
            "or use another channel name",
            reason="INCOMPATIBLE_UNIT",
        )


class Catalogue:
    """The catalogue as this process knows it; grows, and is asked before the database is."""

    def __init__(self, series: Iterable[Series] = ()) -> None:
        self._by_id: dict[int, Series] = {}
        self._by_name: dict[tuple[str, str, str], Series] = {}
        self._by_twin: dict[tuple[str, str], dict[str, Series]] = {}
        self._version = 0
        self.add(series)

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, series: Iterable[Series]) -> None:
        """Remember series; the same again changes nothing."""
        for one in series:
            if one.series_id in self._by_id:
                continue
            self._version += 1
            self._by_id[one.series_id] = one
            self._by_name[one.tenant, one.twin_id, one.channel] = one
            self._by_twin.setdefault((one.tenant, one.twin_id), {})[one.channel] = one

    @property
    def version(self) -> int:
        """Changes whenever a series is added."""
        return self._version

    def by_id(self, series_id: int) -> Series | None:
        """Return the series of this id, of whatever tenant."""
        return self._by_id.get(series_id)

    def require(self, series_id: int) -> Series:
        """Return the series of an id that rows carry: they are appended only once it is known."""
        series = self._by_id.get(series_id)
        if series is None:
            raise AssertionError(f"series {series_id} was appended without being known")
        return series

    def by_name(self, tenant: str, twin_id: str, channel: str) -> Series | None:
        """Return the tenant's series of this name."""
        return self._by_name.get((tenant, twin_id, channel))

    def of_twin(self, tenant: str, twin_id: str) -> Sequence[Series]:
        """Return the known series of a twin, by channel."""
        return [s for _, s in sorted(self._by_twin.get((tenant, twin_id), {}).items())]

    def all(self) -> Sequence[Series]:
        """Return every known series."""
        return list(self._by_id.values())
