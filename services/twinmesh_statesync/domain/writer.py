"""How a mutation is made: append the entry, wait until the own fold has decided it, answer the verdict."""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from twinmesh_core.call_context import remaining_s
from twinmesh_core.errors import OutOfRange, Reason
from twinmesh_core.ids import require_request_id
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.entries import Action, ControlEntry, Verdict
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.ports import Log

DEFAULT_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """An entry that took effect, or asked for what was so already.

    Attributes:
        position: of the entry that decided.
        verdict: what the fold said; never a rejection.
    """

    position: Position
    verdict: Verdict


class Writer:
    """Writes control entries for callers.

    Args:
        log: where entries go.
        live: the fold that decides them.
    """

    def __init__(self, log: Log, live: LiveFold) -> None:
        self._log = log
        self._live = live

    async def write(self, tenant: str, principal: str, action: Action, *, request_id: str, content: bytes) -> Decided:
        """Have an action decided; the same `request_id` again gets the same verdict.

        Args:
            tenant: whose log.
            principal: who writes.
            action: what to do.
            request_id: not empty, see `request_id_or_new`.
            content: the caller's request, whose hash tells a repetition from a reuse of the id.

        Raises:
            TwinmeshError: what the fold refused it with; what storage refused it with; `DeadlineExceeded`.
        """
        entry = ControlEntry(request_id=request_id, principal=principal, action=action)
        position = await self._log.append(tenant, entry, content_hash=blake2b(content, digest_size=16).digest())
        await self._live.wait_for(position.offset, timeout_s=time_left_s())
        verdict = self._live.fold.verdict(tenant, request_id)
        if verdict is None:
            raise OutOfRange(
                f"The request was decided long ago, at offset {position.offset}, and its verdict is no longer "
                "remembered; read the resource instead.",
                reason=Reason.COMPACTED,
            )
        if verdict.error is not None:
            # A copy: the remembered one is raised again for every repetition, and tracebacks would pile up on it.
            raise copy.copy(verdict.error)
        return Decided(position=Position(incarnation=position.incarnation, offset=verdict.offset), verdict=verdict)


def request_id_or_new(text: str) -> str:
    """Return a caller's request id, or a new one for a caller that does not repeat itself; raises `InvalidArgument`."""
    return require_request_id(text) or f"auto-{uuid.uuid4().hex}"


def derived_id(prefix: str, *parts: str) -> str:
    """Return an id that depends on the parts alone, so that a repeated request names the same thing."""
    digest = blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    return f"{prefix}-{digest}"


def time_left_s() -> float:
    """Return how long the call being served may still wait."""
    left = remaining_s()
    return DEFAULT_WAIT_S if left is None else left
