"""What can go wrong on the user's own machine, told with the remedy.

Unlike the errors of the services, these are shown to the person who owns the machine, so paths and commands belong
in them.
"""

from __future__ import annotations


class LocalMeshError(Exception):
    """The local mesh cannot do what was asked; the text says why and what to do.

    Args:
        message: what is wrong, one sentence.
        remedy: what would make it right: a command to type, a file to look at.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(f"{message}\n  -> {remedy}")
        self.message = message
        self.remedy = remedy


class DataDirInUseError(LocalMeshError):
    """Another mesh is using the data directory."""


class ServerFailedError(LocalMeshError):
    """A server ended or did not become ready in time; the remedy names its log."""


class WheelMissingError(LocalMeshError):
    """A Python package with a server's binaries is not installed."""
