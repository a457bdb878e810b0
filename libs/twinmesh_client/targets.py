"""Where the mesh is: an explicit target, a named context, an environment variable, or the context ``local``."""

from __future__ import annotations

import os

from twinmesh_client.context import load_context
from twinmesh_core.errors import Unavailable

TARGET_VARIABLE = "TWINMESH_TARGET"
CONTEXT_VARIABLE = "TWINMESH_CONTEXT"
DEFAULT_CONTEXT = "local"


def resolve_target(target: str | None, context: str | None = None) -> str:
    """Return the endpoint to dial.

    Args:
        target: wins when it is given.
        context: a saved context by name; wins over the environment.

    Raises:
        Unavailable: nothing was named and no context is saved; the message says how to start a mesh.
    """
    if target:
        return target
    named = os.environ.get(TARGET_VARIABLE)
    if named and not context:
        return named
    name = context or context_name()
    saved = load_context(name)
    if saved is None:
        raise Unavailable(
            f"No mesh is known: there is no saved context {name!r}. Start one here with `twinmesh up`, "
            f"or name one: connect('host:7400'), or {TARGET_VARIABLE}=host:7400.",
            metadata={"context": name},
        )
    # Any service knows the others.
    return saved.endpoints.get("ingestion") or next(iter(saved.endpoints.values()))


def context_name() -> str:
    """Return the name of the context that counts when none is said."""
    return os.environ.get(CONTEXT_VARIABLE) or DEFAULT_CONTEXT
