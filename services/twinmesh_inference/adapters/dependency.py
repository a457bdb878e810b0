"""Names whom an outage belongs to: "unavailable" alone does not tell an operator where to look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twinmesh_core.errors import DeadlineExceeded, Reason, Unavailable


@contextmanager
def dependency(name: str) -> Iterator[None]:
    """Say in errors of the block that it is `name` which does not answer."""
    try:
        yield
    except Unavailable as error:
        if error.reason != Reason.DEPENDENCY_UNAVAILABLE or "dependency" in error.metadata:
            raise
        raise Unavailable(
            f"The {name} service does not answer; the call works again as soon as it does.",
            reason=Reason.DEPENDENCY_UNAVAILABLE,
            metadata={**error.metadata, "dependency": name},
            retry_after_s=error.retry_after_s if error.retry_after_s is not None else 1.0,
        ) from None
    except DeadlineExceeded as error:
        if "waiting_for" in error.metadata:
            raise
        raise DeadlineExceeded(
            f"The {name} service did not answer within the time allowed for the call.", metadata={"waiting_for": name}
        ) from None
