"""Which loopback ports the mesh uses.

The five services take one block: 7400 to 7404, metrics on 7410 to 7414; further processes of state-sync come behind,
7405 to 7409. Where one of the first ten is taken the next block of twenty is tried. PostgreSQL, Valkey and Triton take
whatever port is free, since nobody has to remember those.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from twinmesh_local.errors import LocalMeshError

LOOPBACK = "127.0.0.1"
SERVICE_TOKENS = ("ingestion", "storage", "statesync", "training", "inference")
"""The services in the order of their ports within a block."""
FIRST_PORT = 7400
BLOCK_STEP = 20
METRICS_OFFSET = 10
MAX_FURTHER = 5
"""Processes of state-sync beyond the first: so many ports are left in a block."""
_BLOCKS_TRIED = 40
_LISTEN = "0A"
"""TCP_LISTEN as /proc/net/tcp writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortBlock:
    """The ports of the five services and of their metrics, all in one block.

    Attributes:
        base: port of the first service (ingestion).
    """

    base: int

    @property
    def services(self) -> Mapping[str, int]:
        """gRPC port by service token."""
        return MappingProxyType({token: self.base + n for n, token in enumerate(SERVICE_TOKENS)})

    @property
    def metrics(self) -> Mapping[str, int]:
        """Prometheus port by service token."""
        return MappingProxyType({token: port + METRICS_OFFSET for token, port in self.services.items()})

    def port_of(self, token: str, number: int = 0) -> int:
        """The gRPC port of a service's first process, or of a further one (1 to `MAX_FURTHER`)."""
        return self.services[token] if not number else self.base + len(SERVICE_TOKENS) + number - 1

    @property
    def all_ports(self) -> tuple[int, ...]:
        """Every port of the block, services first."""
        return (*self.services.values(), *self.metrics.values())


class PortBlockClaim:
    """A block that no other local mesh of this machine can choose while the claim is open.

    The claim is a socket name in Linux' abstract namespace: it needs no file, and the kernel drops it with the process.
    """

    def __init__(self, block: PortBlock, holder: socket.socket) -> None:
        self.block = block
        self._holder = holder

    def close(self) -> None:
        """Give the block back; repeatable."""
        self._holder.close()


def claim_port_block(base: int | None = None) -> PortBlockClaim:
    """Claim the first block whose ten ports are all free.

    Args:
        base: insist on the block that starts at this port; None tries 7400, 7420, 7440 and so on.

    Raises:
        LocalMeshError: the block asked for is taken, or every block is.
    """
    bases = [base] if base is not None else [FIRST_PORT + BLOCK_STEP * n for n in range(_BLOCKS_TRIED)]
    for candidate in bases:
        block = PortBlock(base=candidate)
        holder = _try_hold(f"\0twinmesh-ports-{candidate}")
        if holder is None:
            continue
        if all(is_free(port) for port in block.all_ports):
            return PortBlockClaim(block, holder)
        holder.close()
    raise LocalMeshError(
        f"ports {bases[0]} to {bases[0] + len(SERVICE_TOKENS) - 1} and their metrics ports are taken"
        if base is not None
        else "every port block from 7400 to 8200 has a port that is taken",
        remedy="`ss -ltnp` shows by whom; stop that program or choose another block",
    )


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do: a port whose old connections linger in TIME_WAIT counts as free, one with a listener does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return True
    return False


def listens_on(pid: int, port: int) -> bool:
    """Whether this very process listens on the port; True also where the system does not tell, False if it is gone."""
    # A system without IPv6 has one table only, one without /proc none.
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    if not tables:
        return True
    inodes = {inode for table in tables for inode in _listeners(table, port)}
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return True
    except OSError:
        return False
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in descriptors:
        # Any of them may be closed while we look.
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) in wanted:
                return True
    return False


def free_port() -> int:
    """A loopback port that nobody listens on at this moment, chosen by the kernel."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _try_hold(name: str) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(name)
    except OSError:
        holder.close()
        return None
    return holder


def _listeners(table: Path, port: int) -> Iterator[str]:
    """Inodes of the sockets of a /proc/net table that listen on the port."""
    for line in table.read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
            yield columns[9]
