"""Who is calling: set by the auth interceptor, read by handlers, so that no request carries a free tenant field."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from twinmesh_client.transport import TENANT_KEY
from twinmesh_core.errors import InvalidArgument, Unauthenticated

ALL_TENANTS: Final = "*"
"""The tenant by which a service follows the log of all tenants."""
DEFAULT_TENANT: Final = "default"
"""The tenant of every caller in open mode."""
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9\-._]{0,127}")


class Role(StrEnum):
    """What a caller may do, from most to least."""

    ADMIN = "admin"
    SERVICE = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The identity behind a call.

    Attributes:
        tenant: the isolation boundary; first argument of every port. `ALL_TENANTS` only from a service.
        principal: who, for audit and logs.
        role: what it may do.
    """

    tenant: str
    principal: str
    role: Role


LOCAL_ADMIN: Final = Caller(tenant=DEFAULT_TENANT, principal="local", role=Role.ADMIN)
"""Everybody, in open mode."""

_current: ContextVar[Caller | None] = ContextVar("twinmesh_caller", default=None)


def current_caller() -> Caller:
    """Return who made the call that this task serves.

    Raises:
        Unauthenticated: outside of any call; background work acts for a tenant that it names itself.
    """
    caller = _current.get()
    if caller is None:
        raise Unauthenticated("There is no caller here.")
    return caller


def enter_caller(caller: Caller) -> None:
    """Make `caller` the one this task serves until it ends; tests of handlers use it too."""
    _current.set(caller)


def open_mode_caller(metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
    """Return the caller of open mode: the local admin, or a service acting for the tenant in its metadata.

    Open mode trusts everyone who reaches the port, so a named tenant is believed.

    Raises:
        InvalidArgument: the tenant named is not an id.
    """
    for key, value in metadata:
        if key == TENANT_KEY:
            tenant = value if isinstance(value, str) else value.decode("ascii", "replace")
            if tenant != ALL_TENANTS and _TENANT.fullmatch(tenant) is None:
                raise InvalidArgument(
                    f"The metadata {TENANT_KEY} must be a tenant id: lower-case letters, digits, '-', '.' and '_'."
                )
            return Caller(tenant=tenant, principal="service", role=Role.SERVICE)
    return LOCAL_ADMIN
