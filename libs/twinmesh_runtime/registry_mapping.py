"""The same mapping under the name that services know it by; see `twinmesh_client.registry_mapping`."""

from twinmesh_client.registry_mapping import (
    duration_from_message,
    duration_to_message,
    fold_control_entry,
    time_from_message,
    time_to_message,
    twin_from_message,
    twin_to_message,
    twin_type_from_message,
    twin_type_to_message,
)

__all__ = [
    "duration_from_message",
    "duration_to_message",
    "fold_control_entry",
    "time_from_message",
    "time_to_message",
    "twin_from_message",
    "twin_to_message",
    "twin_type_from_message",
    "twin_type_to_message",
]
