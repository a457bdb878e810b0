"""A command's arguments held to the command's schema."""

from __future__ import annotations

from twinmesh_core.errors import Conflict, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.registry import CommandSpec, TwinType
from twinmesh_core.value_specs import checked_values
from twinmesh_core.values import Value
from twinmesh_statesync.domain.entries import QueueCommand


def checked_args(twin_type: TwinType, spec: CommandSpec, action: QueueCommand) -> dict[str, Value]:
    """Return the arguments as the device gets them: held to their kinds and ranges, defaults filled in.

    Raises:
        InvalidArgument: one is unknown, missing, or not what the schema says.
        Conflict: the units were converted for another version of the type than the twin has now.
    """
    if action.type_version not in (0, twin_type.version):
        raise Conflict(
            f"The arguments were converted to the units of version {action.type_version} of "
            f"{quoted(twin_type.twin_type_id)}, and the twin is of version {twin_type.version} now; send them again.",
            metadata={"current_version": str(twin_type.version)},
        )
    args = dict(action.args)
    if spec.args:
        args = checked_values(spec.args, args, "args", owner=f"the command {quoted(spec.name)}")
    missing = [name for name in spec.required_args if name not in args]
    if missing:
        raise invalid_field("args", f"the command {quoted(spec.name)} also requires: {', '.join(missing)}")
    return args
