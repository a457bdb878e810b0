"""The series directory: names to series, from memory first and the database where memory does not know."""

from __future__ import annotations

from collections.abc import Sequence

from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_core.observations import SeriesKey
from twinmesh_storage.domain.landing import Dictionary, Landing, check_rows
from twinmesh_storage.domain.ports import SeriesStore
from twinmesh_storage.domain.rows import Segment, segments_of
from twinmesh_storage.domain.series import Catalogue, Series, SeriesRequest, check_same

Name = tuple[str, str]
"""(twin id, channel)"""


class Directory:
    """Finds and creates series, and reads landed batches by them."""

    def __init__(self, *, store: SeriesStore, catalogue: Catalogue, landing: Landing) -> None:
        self._store = store
        self._catalogue = catalogue
        self._landing = landing

    @property
    def version(self) -> int:
        """Changes whenever this process learns of a series."""
        return self._catalogue.version

    async def resolve(self, tenant: str, requests: Sequence[SeriesRequest]) -> list[Series]:
        """Return the series asked for, creating those that are new.

        Raises:
            InvalidArgument: a series exists with another kind or unit.
        """
        missing = [r for r in requests if self._catalogue.by_name(tenant, r.twin_id, r.channel) is None]
        if missing:
            self._catalogue.add(await self._store.resolve(tenant, missing))
        await self._store.classify(tenant, [r for r in requests if r.retention_class is not None])
        found = []
        for index, request in enumerate(requests):
            series = self._catalogue.by_name(tenant, request.twin_id, request.channel)
            if series is None:
                raise AssertionError("a resolved series is not in the catalogue")
            check_same(request, series, f"series[{index}]")
            found.append(series)
        return found

    async def known(self, tenant: str, names: Sequence[Name]) -> list[Series | None]:
        """Return the series of each name, None where there is none."""
        missing = [name for name in names if self._catalogue.by_name(tenant, *name) is None]
        if missing:
            self._catalogue.add(await self._store.find(tenant, missing))
        return [self._catalogue.by_name(tenant, *name) for name in names]

    async def require(self, tenant: str, names: Sequence[Name], field: str = "series") -> list[Series]:
        """Return the series of each name.

        Raises:
            NotFound: CHANNEL_NOT_FOUND naming the first one that storage never saw.
        """
        found = []
        for index, (name, series) in enumerate(zip(names, await self.known(tenant, names), strict=True)):
            if series is None:
                raise NotFound(
                    f"{field}[{index}]: twin {name[0]!r} has no observations of channel {name[1]!r}; "
                    "check the names (list series), or write some first.",
                    reason=Reason.CHANNEL_NOT_FOUND,
                    metadata={"twin_id": name[0], "channel": name[1]},
                )
            found.append(series)
        return found

    async def of_twins(self, tenant: str, twin_ids: Sequence[str]) -> list[Series]:
        """Return all series of these twins, in the order of the twins, then by channel."""
        if any(not self._catalogue.of_twin(tenant, twin_id) for twin_id in twin_ids):
            self._catalogue.add(await self._store.list_twins(tenant, twin_ids))
        return [series for twin_id in twin_ids for series in self._catalogue.of_twin(tenant, twin_id)]

    async def every_series(self, tenant: str, twin_ids: Sequence[str]) -> list[Series]:
        """Return all series of these twins that the catalogue holds now, whichever process created them."""
        series = await self._store.list_twins(tenant, twin_ids)
        self._catalogue.add(series)
        return series

    def all_series(self, tenant: str) -> list[Series]:
        """Return every series of the tenant that this process knows; those with rows in the tail are among them."""
        return [series for series in self._catalogue.all() if series.tenant == tenant]

    async def land(self, tenant: str, body: bytes) -> tuple[Segment, ...]:
        """Decode a landed batch and check that every row belongs to a series of this tenant, of the section's kind.

        Raises:
            InvalidArgument: the bytes are no batch, or a series id, kind, quality or event time is not acceptable.
        """
        dictionary, batch = self._landing.read(body)
        if not self._landing.is_known(dictionary) or not self._is_of(tenant, dictionary):
            await self._check_series(tenant, dictionary.keys)
            self._landing.remember(dictionary)
        check_rows(batch, dictionary)
        return segments_of(batch, dictionary.ids)

    def _is_of(self, tenant: str, dictionary: Dictionary) -> bool:
        """Whether a dictionary that was checked once was so for this tenant: its series are all of one."""
        first = self._catalogue.by_id(dictionary.keys[0].series_id) if dictionary.keys else None
        return first is not None and first.tenant == tenant

    async def _check_series(self, tenant: str, keys: Sequence[SeriesKey]) -> None:
        unknown = [key.series_id for key in keys if self._catalogue.by_id(key.series_id) is None]
        if unknown:
            self._catalogue.add(await self._store.find_ids(tenant, unknown))
        for index, key in enumerate(keys):
            series = self._catalogue.by_id(key.series_id)
            if series is None or series.tenant != tenant:
                raise invalid_field(
                    f"observations.series[{index}].series_id",
                    f"{key.series_id} is not a series of this tenant; ask ResolveSeries for ids",
                )
            if (series.twin_id, series.channel) != (key.twin_id, key.channel) or series.kind is not key.kind:
                raise invalid_field(
                    f"observations.series[{index}]",
                    f"series {key.series_id} is {series.twin_id}/{series.channel} of kind {series.kind.name}",
                )
