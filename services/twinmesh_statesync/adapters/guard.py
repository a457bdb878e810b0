"""Where deliveries may go: public addresses, unless a setting allows others; and to the address looked at."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh_core.errors import invalid_field
from twinmesh_statesync.domain.delivery.ports import DeliveryFailedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_EMBEDDING: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""IPv6 that a gateway turns into any IPv4 address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """An address that may be connected to.

    Attributes:
        address: literal, so that nothing is resolved a second time.
        port: its port.
        private: it is one that only a setting allows.
    """

    address: str
    port: int
    private: bool


class Guard:
    """Refuses addresses of this machine and of private networks.

    Args:
        networks: allowed all the same.
        timeout_s: of one look-up.
    """

    def __init__(self, networks: Sequence[Network] = (), *, timeout_s: float = 5.0) -> None:
        self._networks = tuple(networks)
        self._timeout_s = timeout_s

    async def resolve(self, host: str, port: int) -> Allowed:
        """Return the address of a host; raises `DeliveryFailedError` where any of its addresses is not allowed."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError):
            raise DeliveryFailedError(f"the host {host} cannot be resolved") from None
        addresses = [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
        if not addresses:
            raise DeliveryFailedError(f"the host {host} has no address")
        public = [_public(address) for address in addresses]
        for address, is_public in zip(addresses, public, strict=True):
            if not is_public and not self._allows(address):
                raise DeliveryFailedError(
                    f"the host {host} has a loopback, link-local, private or reserved address; an operator may "
                    "allow its network with TWINMESH_STATESYNC_DELIVERY_ALLOWED_NETWORKS"
                )
        return Allowed(address=str(addresses[0]), port=port, private=not all(public))

    def _allows(self, address: Address) -> bool:
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def networks_of(text: str) -> tuple[Network, ...]:
    """Return the networks of a setting, separated by commas; raises `InvalidArgument`."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise invalid_field(
            "TWINMESH_STATESYNC_DELIVERY_ALLOWED_NETWORKS", "must be networks such as 10.0.0.0/8, separated by commas"
        ) from None


def _public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None:
            return _public(inner)
        if any(address in network for network in _EMBEDDING):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved
