"""The Twinmesh SDK: ``with tm.connect() as mesh``, or ``async with tm.connect_async() as mesh``.

Sync and async have the same names; the sync one is generated from the async one. Every failure is a `TwinmeshError`
with a reason, the field that is wrong where one is, and the remedy.
"""

import os
from typing import TYPE_CHECKING, Any

from twinmesh_core.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    TwinmeshError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from twinmesh_core.geometry import Geometry
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_core.registry import CommandSpec, RelationshipSpec, TwinType
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec

# gRPC's core writes notices of every connection to standard error; it reads this once, when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

if TYPE_CHECKING:
    from twinmesh_client.acks import WriteAck
    from twinmesh_client.aio.mesh import connect_async
    from twinmesh_client.aio.producer import open_writer_async
    from twinmesh_client.conditions import connectivity, current_state, delta, desired, predicted, reported
    from twinmesh_client.connecting import connect, open_writer
    from twinmesh_client.modelling import argument, channel, command, property_spec, relationship, twin_type
    from twinmesh_client.orders import Cancelled, Order, Refused, Target
    from twinmesh_client.refusals import RefusedBatch
    from twinmesh_client.replicas import NotConverged, Position
    from twinmesh_client.rule_models import rule

# A module must not be named as one of these: importing it would put the module in the name's place.
_LAZY = {
    "Cancelled": "twinmesh_client.orders",
    "Order": "twinmesh_client.orders",
    "Target": "twinmesh_client.orders",
    "GapDetected": "twinmesh_client.watch_proof",
    "NotConverged": "twinmesh_client.replicas",
    "Position": "twinmesh_client.replicas",
    "Refused": "twinmesh_client.orders",
    "RefusedBatch": "twinmesh_client.refusals",
    "WriteAck": "twinmesh_client.acks",
    "argument": "twinmesh_client.modelling",
    "channel": "twinmesh_client.modelling",
    "command": "twinmesh_client.modelling",
    "connect": "twinmesh_client.connecting",
    "connect_async": "twinmesh_client.aio.mesh",
    "connectivity": "twinmesh_client.conditions",
    "current_state": "twinmesh_client.conditions",
    "delta": "twinmesh_client.conditions",
    "desired": "twinmesh_client.conditions",
    "open_writer": "twinmesh_client.connecting",
    "open_writer_async": "twinmesh_client.aio.producer",
    "predicted": "twinmesh_client.conditions",
    "property_spec": "twinmesh_client.modelling",
    "relationship": "twinmesh_client.modelling",
    "reported": "twinmesh_client.conditions",
    "rule": "twinmesh_client.rule_models",
    "twin_type": "twinmesh_client.modelling",
}
"""Loaded on first use: services import this package for its transport alone, and start without the rest."""

__all__ = [
    "AlreadyExists",
    "ArgumentSpec",
    "Cancelled",
    "ChannelKind",
    "CommandSpec",
    "Conflict",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FlagReason",
    "GapDetected",
    "Geometry",
    "Internal",
    "InvalidArgument",
    "NotConverged",
    "NotFound",
    "Order",
    "OutOfRange",
    "PermissionDenied",
    "Position",
    "PropertySpec",
    "Quality",
    "Refused",
    "RefusedBatch",
    "RelationshipSpec",
    "ResourceExhausted",
    "Target",
    "TwinType",
    "TwinmeshError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "WriteAck",
    "argument",
    "channel",
    "command",
    "connect",
    "connect_async",
    "connectivity",
    "current_state",
    "delta",
    "desired",
    "open_writer",
    "open_writer_async",
    "predicted",
    "property_spec",
    "relationship",
    "reported",
    "rule",
    "twin_type",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'twinmesh_client' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(module), name)
    globals()[name] = found
    return found
