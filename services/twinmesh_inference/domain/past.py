"""The past that a model is shown: read as training read it, and refused where it cannot carry an answer."""

from __future__ import annotations

from twinmesh_core.errors import FailedPrecondition, NotFound, Reason
from twinmesh_core.ids import quoted
from twinmesh_inference.domain import rows
from twinmesh_inference.domain.models import Signature
from twinmesh_inference.domain.ports import Twin, Window, WindowReader


async def window_of(
    reader: WindowReader,
    tenant: str,
    twin: Twin,
    signature: Signature,
    *,
    at_unix_us: int | None,
    min_offset: int,
    as_of_offset: int,
    incarnation: str,
) -> Window:
    """Return the twin's window for a model of this signature, with enough of the target and in the units learned.

    Args:
        reader: where the past is.
        tenant: whose.
        twin: the twin.
        signature: what the model eats.
        at_unix_us: end of the window; None = the newest event time of its inputs.
        min_offset: the window must reflect this offset.
        as_of_offset: entries after this offset are not seen; 0 = the present.
        incarnation: of the log that the offsets belong to; "" = not checked.

    Raises:
        NotFound: CHANNEL_NOT_FOUND, the twin's type lacks a channel of the model.
        FailedPrecondition: NOT_ENOUGH_HISTORY, INCOMPATIBLE_UNIT, LOG_REWOUND.
    """
    lacking = [name for name in signature.channels if name not in twin.channels]
    if lacking:
        there = ", ".join(sorted(twin.channels))
        raise NotFound(
            f"The model needs {', '.join(map(quoted, lacking))}, which the twin {quoted(twin.twin_id)} does not have; "
            f"it has: {there}. Ask for a model that was trained on it.",
            reason=Reason.CHANNEL_NOT_FOUND,
            metadata={"channels": there},
        )
    try:
        window = await reader.read(
            tenant,
            twin.twin_id,
            signature,
            at_unix_us=at_unix_us,
            min_offset=min_offset,
            as_of_offset=as_of_offset,
            incarnation=incarnation,
        )
    except NotFound as error:
        if error.reason != Reason.CHANNEL_NOT_FOUND:
            raise
        # The twin's type has the channel; only nothing was ever written to it.
        needed = rows.steps_needed(signature)
        raise FailedPrecondition(
            f"Nothing was measured yet of one of the channels that the model needs of {quoted(twin.twin_id)} "
            f"({', '.join(signature.channels)}); wait for measurements, or load history.",
            reason=Reason.NOT_ENOUGH_HISTORY,
            metadata={"needed": str(needed), "available": "0"},
        ) from None
    rows.require_history(window, signature)
    rows.require_fit(twin, window, signature)
    return window
