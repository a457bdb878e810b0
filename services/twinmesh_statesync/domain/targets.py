"""Desired values: setting them under a condition, tracking how far they got, and letting their deadline pass."""

from __future__ import annotations

from dataclasses import replace

from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.registry import ChannelSpec
from twinmesh_core.value_specs import checked_values
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.conditions import check_conditions, check_revision, check_unit
from twinmesh_statesync.domain.entries import AcknowledgeDesired, ExpireDesired, SetDesired
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.replica import DesiredState, DesiredValue
from twinmesh_statesync.domain.twin_state import Draft, TwinState, require_channel
from twinmesh_statesync.domain.values import Value, as_kind

_SUPERSEDED = "Superseded by a newer target."
_NO_REASON = "The device gave no reason."


def set_desired(draft: Draft, action: SetDesired) -> tuple[str, ...]:
    """Set and remove targets, all or nothing; channels with a `set_command` get their command at the same offset.

    Returns:
        The ids of the commands queued, by channel in order.

    Raises:
        Conflict: REVISION_CONFLICT, with the current revision and state.
        NotFound: CHANNEL_NOT_FOUND.
        FailedPrecondition: CONDITION_NOT_MET, with the current state; NOT_CONTROLLABLE; INCOMPATIBLE_UNIT.
        InvalidArgument: a value is of the wrong kind or outside the channel's valid range.
    """
    state = draft.state
    check_revision(
        state, "desired", state.replica.desired.revision, action.if_revision, (*action.values, *action.remove)
    )
    check_conditions(state, action.conditions)
    wanted = {
        channel: _checked(state, channel, action.values[channel], action.units.get(channel, ""))
        for channel in sorted(action.values)
    }
    for channel in action.remove:
        require_channel(state, channel)
    made = []
    for channel in sorted(set(action.remove) - set(wanted)):
        _withdraw_command(draft, draft.target(channel))
        if draft.target(channel) is not None:
            draft.drop_target(channel)
            draft.desired_moves = True
    for channel, value in wanted.items():
        _withdraw_command(draft, draft.target(channel))
        command = _carrier(draft, state.specs[channel], value)
        target = DesiredValue(
            channel=channel,
            value=value,
            deadline_unix_us=action.deadline_unix_us,
            offset=draft.offset,
            command_id=command.command_id if command is not None else "",
            tolerance=action.tolerances.get(channel),
            set_time_unix_us=draft.commit_time_unix_us,
            delta_since_unix_us=draft.commit_time_unix_us,
        )
        draft.put_target(draft.settled(target))
        draft.desired_moves = True
        if command is not None:
            draft.put_command(command)
            made.append(command.command_id)
    return tuple(made)


def acknowledge_desired(draft: Draft, action: AcknowledgeDesired) -> None:
    """Take what the device says of its targets; what it says of one that was replaced meanwhile has no effect."""
    for item in action.items:
        target = draft.target(item.channel)
        if target is None or target.offset != item.set_offset:
            continue
        if item.state is DesiredState.REJECTED:
            reason = item.reason or _NO_REASON
            draft.put_target(replace(target, progress=DesiredState.REJECTED, rejection=reason))
        elif item.state is DesiredState.DELIVERED and target.progress is DesiredState.PENDING:
            draft.put_target(replace(target, progress=DesiredState.DELIVERED))


def not_converged_id(channel: str, set_offset: int) -> str:
    """Return the id of the event that says that a target was not met by its deadline."""
    return f"not-converged-{channel}-{set_offset}"


def expire_desired(draft: Draft, action: ExpireDesired) -> None:
    """Record an event for each target whose deadline passed before it was ever met; one not refused is EXPIRED now."""
    for channel, set_offset in zip(action.channels, action.set_offsets, strict=False):
        target = draft.target(channel)
        if target is None or target.offset != set_offset or target.ever_met:
            continue
        if target.deadline_unix_us is None or target.progress is DesiredState.EXPIRED:
            continue
        event_id = not_converged_id(channel, set_offset)
        if event_id in draft.state.events:
            continue
        fact = draft.state.replica.reported.values.get(channel)
        reached = "nothing was reported" if fact is None else f"reported is {fact.value}"
        if target.progress is DesiredState.REJECTED:
            # What the device said is worth more than that time has passed.
            reached += f"; the device refused it: {target.rejection}"
        else:
            draft.put_target(replace(target, progress=DesiredState.EXPIRED))
        draft.events.append(
            Event(
                event_id=event_id,
                twin_id=draft.state.twin.twin_id,
                kind=EventKind.NOT_CONVERGED,
                start_time_unix_us=target.deadline_unix_us,
                message=f"Desired {channel} = {target.value} was not met by its deadline; {reached}.",
                offset=draft.offset,
                channel=channel,
            )
        )


def follow_command(draft: Draft, command: Command) -> None:
    """Let the target that a command carries follow what became of the command."""
    for target in draft.state.replica.desired.values.values():
        if target.command_id != command.command_id or target.progress is DesiredState.EXPIRED:
            continue
        moved = target
        if command.state in (CommandState.DELIVERED, CommandState.SUCCEEDED):
            moved = replace(target, progress=DesiredState.DELIVERED)
        elif command.state in (CommandState.FAILED, CommandState.CANCELLED):
            reason = command.message or _NO_REASON
            moved = replace(target, progress=DesiredState.REJECTED, rejection=reason)
        elif command.state is CommandState.EXPIRED:
            moved = replace(target, progress=DesiredState.EXPIRED)
        if moved is not target:
            draft.put_target(draft.settled(moved))


def _checked(state: TwinState, channel: str, value: Value, unit: str) -> Value:
    spec = require_channel(state, channel)
    if not spec.controllable:
        raise _not_controllable(state, channel)
    field = f"values[{channel}]"
    check_unit(spec, unit, field)
    found = as_kind(value, spec.kind, field)
    if isinstance(found, int | float) and not isinstance(found, bool):
        low, high = spec.min_value, spec.max_value
        if (low is not None and found < low) or (high is not None and found > high):
            bounds = f"from {'-∞' if low is None else f'{low:g}'} to {'∞' if high is None else f'{high:g}'}"
            raise invalid_field(field, f"{found:g} is outside the channel's valid range {bounds} {spec.unit}".rstrip())
    return found


def _not_controllable(state: TwinState, channel: str) -> TwinmeshError:
    can = ", ".join(spec.name for spec in state.specs.values() if spec.controllable) or "none"
    return FailedPrecondition(
        f"values[{channel}]: channel {quoted(channel)} of {quoted(state.twin.twin_id)} is not controllable; "
        f"controllable channels: {can}",
        reason=Reason.NOT_CONTROLLABLE,
        metadata={"channel": channel, "controllable": can},
    )


def _carrier(draft: Draft, spec: ChannelSpec, value: Value) -> Command | None:
    if not spec.set_command:
        return None
    return Command(
        command_id=f"set-{spec.name}-{draft.offset}",
        twin_id=draft.state.twin.twin_id,
        name=spec.set_command,
        args=_carried(draft.state, spec, value),
        state=CommandState.QUEUED,
        message="",
        create_time_unix_us=draft.commit_time_unix_us,
        expire_time_unix_us=None,
        create_offset=draft.offset,
        offset=draft.offset,
        update_time_unix_us=draft.commit_time_unix_us,
    )


def _carried(state: TwinState, spec: ChannelSpec, value: Value) -> dict[str, Value]:
    """Return the arguments of the command that carries a value; raises `InvalidArgument` if its schema refuses it."""
    args = {"value": value}
    command = state.twin_type.command(spec.set_command)
    if command is None or not command.args:
        return args
    return checked_values(command.args, args, f"values[{spec.name}]", owner=f"the command {quoted(command.name)}")


def _withdraw_command(draft: Draft, target: DesiredValue | None) -> None:
    """Cancel the undelivered command of a target that goes: a device that comes back must not act on it."""
    if target is None or not target.command_id:
        return
    command = draft.state.commands.get(target.command_id)
    if command is not None and command.state is CommandState.QUEUED:
        draft.put_command(
            replace(
                command,
                state=CommandState.CANCELLED,
                message=_SUPERSEDED,
                offset=draft.offset,
                update_time_unix_us=draft.commit_time_unix_us,
            )
        )
