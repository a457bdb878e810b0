"""OPC UA servers: subscriptions with status codes as qualities, and history for the time in between."""

from twinmesh_connectors.opcua.configuration import from_config

__all__ = ["from_config"]
