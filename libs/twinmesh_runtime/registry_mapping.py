"""The same mapping under the name that services know it by; see `twinmesh_client.registry_mapping`."""

from twinmesh_client.keepable import can_be_kept
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
    unit_changes_from_message,
    unit_changes_to_message,
)
from twinmesh_client.spec_mapping import value_from_message, value_to_message, values_from_messages

__all__ = [
    "can_be_kept",
    "duration_from_message",
    "duration_to_message",
    "fold_control_entry",
    "time_from_message",
    "time_to_message",
    "twin_from_message",
    "twin_to_message",
    "twin_type_from_message",
    "twin_type_to_message",
    "unit_changes_from_message",
    "unit_changes_to_message",
    "value_from_message",
    "value_to_message",
    "values_from_messages",
]
