"""Whether this process should be sent calls: its own pools only, never other services, or one outage becomes five."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from twinmesh_core.errors import TwinmeshError
from twinmesh_runtime.logs import log

INTERVAL_S: Final = 1.0
TIMEOUT_S: Final = 2.0
FAILURES: Final = 2
"""Failed rounds in a row before ready becomes not ready: one late answer on a busy machine is no outage."""

Check = Callable[[], Awaitable[None]]


async def keep_readiness(
    checks: Mapping[str, Check],
    set_ready: Callable[[bool], None],
    *,
    interval_s: float = INTERVAL_S,
    capability: str = "",
) -> None:
    """Run `checks` every `interval_s` and tell `set_ready`; runs until cancelled, and logs changes only."""
    named: dict[str, Any] = {"capability": capability} if capability else {}
    ready = False
    failures = 0
    told: str | None = None
    while True:
        failed = await _first_failure(checks)
        failures = 0 if failed is None else failures + 1
        if failed is None and not ready:
            ready = True
            set_ready(True)
            log("ready", **named)
        elif failed is not None and failures >= FAILURES and ready:
            ready = False
            set_ready(False)
        if failed is not None and failed != told and not ready:
            log("not_ready", level="warning", check=failed, **named)
        told = failed
        await asyncio.sleep(interval_s)


async def _first_failure(checks: Mapping[str, Check]) -> str | None:
    for name, check in checks.items():
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await check()
        except TimeoutError:
            return f"{name}: no answer within {TIMEOUT_S:g} s"
        except TwinmeshError as error:
            return f"{name}: {error.message}"
        except Exception as error:  # noqa: BLE001  whatever a check raises means not ready
            return f"{name}: {type(error).__name__}: {error}"
    return None
