"""The grids of windows that were asked for lately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.window_grid import WindowGrid
from twinmesh_storage.rpc import seeing

_KEPT: Final = 64


class WindowGrids:
    """Looks up grids, and keeps the last ones until the catalogue grows."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: OrderedDict[tuple[str, tuple[str, ...], tuple[str, ...]], tuple[int, WindowGrid]] = OrderedDict()

    async def of(self, tenant: str, twins: Sequence[str], channels: Sequence[str]) -> WindowGrid:
        """Return the grid of these twins and channels.

        Raises:
            InvalidArgument: a channel of text or JSON.
            NotFound: CHANNEL_NOT_FOUND.
        """
        key = (tenant, tuple(twins), tuple(channels))
        kept = self._kept.get(key)
        if kept is not None and kept[0] == self._directory.version:
            self._kept.move_to_end(key)
            return kept[1]
        known = await self._directory.known(tenant, [(twin, channel) for twin in twins for channel in channels])
        width = len(channels)
        grid = WindowGrid.of([known[row * width : (row + 1) * width] for row in range(len(twins))])
        seeing.require_numeric(grid.series, channels)
        if None not in known:  # what is not there yet is looked for anew each time
            self._kept[key] = (self._directory.version, grid)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return grid
