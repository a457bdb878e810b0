"""Where the mesh is: an explicit target, an environment variable, or the saved context."""

from __future__ import annotations

import os

from twinmesh_client.context import load_context
from twinmesh_core.errors import Unavailable

TARGET_VARIABLE = "TWINMESH_TARGET"
CONTEXT_VARIABLE = "TWINMESH_CONTEXT"
DEFAULT_CONTEXT = "local"


def resolve_target(target: str | None) -> str:
    """Return the endpoint to dial.

    Raises:
        Unavailable: nothing was named and no context is saved; the message says how to start a mesh.
    """
    if target:
        return target
    named = os.environ.get(TARGET_VARIABLE)
    if named:
        return named
    name = os.environ.get(CONTEXT_VARIABLE, DEFAULT_CONTEXT)
    context = load_context(name)
    if context is None:
        raise Unavailable(
            f"No mesh is known: there is no saved context {name!r}. Start one here with `twinmesh up`, "
            f"or name one: connect('host:7400'), or {TARGET_VARIABLE}=host:7400.",
            metadata={"context": name},
        )
    return context.endpoints["ingestion"]
