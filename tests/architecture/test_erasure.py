"""What an erasure takes out of the log, state-sync forgets, and the other way round: one list for both."""

import pytest

from twinmesh.type.v1 import entry_pb2
from twinmesh_statesync.domain.erasing import erasable_twin
from twinmesh_statesync.rpc.mapping.control import control_from_message
from twinmesh_storage.rpc.control_entries import OF_TWIN

ACTIONS = [field.name for field in entry_pb2.ControlEntry.DESCRIPTOR.oneofs_by_name["action"].fields]


@pytest.mark.parametrize("name", ACTIONS)
def test_storage_erases_exactly_what_state_sync_forgets(name: str) -> None:
    """An action that only one of them knew would survive an erasure, or make rebuilt replicas differ from kept ones."""
    entry = entry_pb2.ControlEntry(request_id="r")
    action = getattr(entry, name)
    action.SetInParent()
    about = action.event if name == "record_event" else action
    if "twin_id" in about.DESCRIPTOR.fields_by_name:
        about.twin_id = "patient"
    decoded = control_from_message(entry).action
    forgets = decoded is not None and erasable_twin(decoded) == "patient"
    assert forgets == (name in OF_TWIN), (
        f"{name}: add it to OF_TWIN of twinmesh_storage.rpc.control_entries if it holds facts of one twin, or to "
        "_STAYS of twinmesh_statesync.domain.erasing if it only says that the twin is registered"
    )
