"""What a connector is: one source, read until it ends or is told to stop, its rows handed to a producer session."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.writer import Writer
from twinmesh_connectors.status import Status


class SourceError(Exception):
    """The source cannot be read now: away, hung, or it broke off; the runner starts the connector again.

    Args:
        message: for a person: which source, and what it said.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Connector(Protocol):
    """Reads one source.

    `run` is called again after it raised, so whatever it opens it opens there and closes at its end. It may be
    cancelled at any await. What it has handed to the writer is the writer's care.
    """

    @property
    def name(self) -> str:
        """Name in status lines: of the source, not of the kind."""
        ...

    async def run(self, writer: Writer, status: Status) -> None:
        """Read the source and write its rows; returns when the source has ended for good.

        Raises:
            SourceError: the source is away; run again later.
            InvalidArgument: it can never work as configured; nothing is tried again.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """A connector that needs something in the mesh before anything is sent."""

    async def prepare(self, mesh: Mesh) -> None:
        """Create or look up twins; called once, when the mesh is there, which with a spool may be long after `run`."""
        ...
