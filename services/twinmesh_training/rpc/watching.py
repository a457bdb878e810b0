"""Tells watchers of runs what changed: one query per tick for all, and each sees the newest state, never a backlog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from twinmesh_core.errors import Reason, TwinmeshError, Unavailable
from twinmesh_runtime.telemetry import log
from twinmesh_training.domain.ports import Registry
from twinmesh_training.domain.values import Run

TICK_S: Final = 0.2
_Key = tuple[str, str]


class _Watched:
    """One run and those who wait for its next change."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.changed = asyncio.Event()
        self.watchers = 0


class RunHub:
    """Follows the runs that somebody watches."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watched: dict[_Key, _Watched] = {}
        self._draining = False
        self._wanted = asyncio.Event()

    async def watch(self, tenant: str, run_id: str) -> AsyncGenerator[Run, None]:
        """Yield the run now and after each change, until it has ended.

        Raises:
            NotFound: RUN_NOT_FOUND.
            Unavailable: DRAINING: this process stops; watch again.
        """
        run = await self._registry.run(tenant, run_id)
        key = (tenant, run_id)
        watched = self._watched.setdefault(key, _Watched(run))
        watched.watchers += 1
        self._wanted.set()
        try:
            seen = run.revision
            yield run
            while not run.state.final:
                if self._draining:
                    raise Unavailable(
                        "The server is stopping; watch the run again.", reason=Reason.DRAINING, retry_after_s=0.5
                    )
                if watched.run.revision > seen:
                    run, seen = watched.run, watched.run.revision
                    yield run
                else:
                    await watched.changed.wait()
        finally:
            watched.watchers -= 1
            if not watched.watchers and self._watched.get(key) is watched:
                del self._watched[key]

    async def run(self) -> None:
        """Poll for changes while anybody watches; a background task of the service."""
        failing = False
        while True:
            if not self._watched:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                found = await self._registry.changed_runs(tuple(self._watched))
                failing = False
            except TwinmeshError as error:
                if not failing:  # once per outage; readiness tells it as well
                    log("watch_poll_failed", level="warning", reason=error.reason)
                failing, found = True, {}
            for key, run in found.items():
                watched = self._watched.get(key)
                if watched is not None and run.revision > watched.run.revision:
                    watched.run = run
                    _wake(watched)
            await asyncio.sleep(TICK_S)

    async def end_all(self) -> None:
        """End every watch with DRAINING."""
        self._draining = True
        for watched in self._watched.values():
            _wake(watched)


def _wake(watched: _Watched) -> None:
    watched.changed.set()
    watched.changed = asyncio.Event()
