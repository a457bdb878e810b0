"""What becomes of a twin's state when it comes to another version of its type; it never stands in the way of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.ids import quoted
from twinmesh_core.migration import MigrationEffect, MigrationPlan, MigrationStep, UnitChange
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_core.value_specs import checked_values
from twinmesh_core.values import is_number
from twinmesh_statesync.domain.alarms.rules_changed import take_rules
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.events import Event, EventKind, Prediction
from twinmesh_statesync.domain.recording import MAX_EVENTS
from twinmesh_statesync.domain.replica import (
    Desired,
    DesiredValue,
    Predicted,
    Replica,
    Reported,
    delta_of,
    settled,
)
from twinmesh_statesync.domain.twin_state import TwinState
from twinmesh_statesync.domain.values import ReportedValue

_MAX_MESSAGE: Final = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePlan:
    """What becomes of a twin's state.

    Attributes:
        steps: what is told of it.
        replica: the whole replica afterwards.
        commands: those that are cancelled or changed.
        events: what is recorded.
        commit_time_unix_us: of the entry.
    """

    steps: tuple[MigrationStep, ...]
    replica: Replica
    commands: tuple[Command, ...]
    events: tuple[Event, ...]
    commit_time_unix_us: int

    def carry_out(self, state: TwinState, twin: Twin, twin_type: TwinType) -> Change:
        """Write the plan to the state, and return the change that tells it whole."""
        version, before, rules = state.version, state.replica.revision, state.rulebook
        state.take_identity(twin, twin_type)
        state.replica = self.replica
        cleared = take_rules(state, rules, self.replica.offset, self.commit_time_unix_us)
        state.tracks = {key: track for key, track in state.tracks.items() if key in self.replica.predicted.predictions}
        state.commands.update((command.command_id, command) for command in self.commands)
        state.events.update((event.event_id, event) for event in self.events)
        return Change(
            tenant=state.tenant,
            twin=twin,
            kind=ChangeKind.CHANGED,
            offset=self.replica.offset,
            revision=self.replica.revision,
            previous_revision=before,
            replica=state.replica,
            desired_revision=self.replica.desired.revision,
            commands=self.commands,
            events=self.events,
            identity=True,
            before=version,
            after=state.renew_version(),
            alarms=cleared,
        )


def plan_state(
    state: TwinState, plan: MigrationPlan, target: TwinType, offset: int, commit_time_unix_us: int
) -> StatePlan:
    """Return what becomes of the state of a twin that `plan` brings to `target`; nothing is written."""
    steps: list[MigrationStep] = []
    specs = {channel.name: channel for channel in target.channels}
    rescaled = {change.name: change for change in plan.rescaled}
    commands = _commands(state, target, offset, commit_time_unix_us, steps)
    reported = _reported(state.replica.reported, specs, rescaled)
    desired = _desired(state, specs, rescaled, reported, commands, offset, commit_time_unix_us, steps)
    predicted = _predicted(state.replica.predicted, specs, rescaled, steps)
    replica = replace(
        state.replica,
        revision=state.replica.revision + 1,
        offset=offset,
        reported=reported,
        desired=desired,
        predicted=predicted,
        delta=delta_of(desired.values, reported.values),
        residuals={
            key: residual
            for key, residual in state.replica.residuals.items()
            if key[0] in specs and key[0] not in rescaled
        },
    )
    lost = [step for step in (*plan.steps, *steps) if step.effect is not MigrationEffect.CARRIED]
    event = _event(state, plan, target, lost, offset, commit_time_unix_us)
    return StatePlan(
        steps=tuple(steps),
        replica=replica,
        commands=tuple(sorted(commands.values(), key=Command.order)),
        events=(event,) if len(state.events) < MAX_EVENTS else (),
        commit_time_unix_us=commit_time_unix_us,
    )


def _reported(before: Reported, specs: Mapping[str, ChannelSpec], rescaled: Mapping[str, UnitChange]) -> Reported:
    values: dict[str, ReportedValue] = {}
    for channel, fact in before.values.items():
        if channel not in specs:
            continue
        change = rescaled.get(channel)
        if change is not None and is_number(fact.value):
            scaled = change.apply(float(fact.value))
            fact = ReportedValue(channel, scaled, fact.quality, fact.event_time_unix_us, fact.offset)
        values[channel] = fact
    moved = int(values != before.values)
    return Reported(revision=before.revision + moved, values=values) if moved else before


def _desired(
    state: TwinState,
    specs: Mapping[str, ChannelSpec],
    rescaled: Mapping[str, UnitChange],
    reported: Reported,
    commands: dict[str, Command],
    offset: int,
    commit_time_unix_us: int,
    steps: list[MigrationStep],
) -> Desired:
    before = state.replica.desired
    values: dict[str, DesiredValue] = {}
    carried = 0
    for channel, held in before.values.items():
        target = held
        part = f"desired.{channel}"
        change = rescaled.get(channel)
        if change is not None and is_number(target.value):
            near = None if target.tolerance is None else target.tolerance * abs(change.scale)
            target = replace(target, value=change.apply(float(target.value)), tolerance=near)
        wrong = _target_fault(target, specs.get(channel))
        if wrong:
            steps.append(MigrationStep(part=part, effect=MigrationEffect.DROPPED, detail=wrong))
            _withdraw(state, held, f"Its target was dropped: {wrong}.", commands, offset, commit_time_unix_us)
            continue
        if target is held:
            carried += 1
        else:
            steps.append(
                MigrationStep(part=part, effect=MigrationEffect.CONVERTED, detail=f"{held.value} -> {target.value}")
            )
            _restate(state, target, commands, offset, commit_time_unix_us)
        values[channel] = settled(target, reported.values.get(channel), specs[channel], commit_time_unix_us)
    if carried:
        steps.append(MigrationStep(part="desired", effect=MigrationEffect.CARRIED, detail=str(carried)))
    if values == before.values:
        return before
    moved = any(values.get(c) is None or values[c].value != held.value for c, held in before.values.items())
    return Desired(revision=before.revision + int(moved), values=values)


def _target_fault(target: DesiredValue, spec: ChannelSpec | None) -> str:
    if spec is None:
        return "the channel is gone"
    if not spec.controllable:
        return "the channel is no longer controllable"
    value = target.value
    if is_number(value):
        low, high = spec.min_value, spec.max_value
        if (low is not None and float(value) < low) or (high is not None and float(value) > high):
            return f"{value} lies outside the channel's new range"
    return ""


def _withdraw(
    state: TwinState,
    target: DesiredValue,
    why: str,
    commands: dict[str, Command],
    offset: int,
    commit_time_unix_us: int,
) -> None:
    command = commands.get(target.command_id) or state.commands.get(target.command_id)
    if command is not None and command.state is CommandState.QUEUED:
        commands[command.command_id] = _cancelled(command, why, offset, commit_time_unix_us)


def _restate(
    state: TwinState, target: DesiredValue, commands: dict[str, Command], offset: int, commit_time_unix_us: int
) -> None:
    """Let the command that still waits for the device carry the value in the new unit."""
    command = commands.get(target.command_id) or state.commands.get(target.command_id)
    if command is not None and command.state is CommandState.QUEUED:
        args = {**command.args, "value": target.value}
        commands[command.command_id] = replace(
            command, args=args, offset=offset, update_time_unix_us=commit_time_unix_us
        )


def _predicted(
    before: Predicted,
    specs: Mapping[str, ChannelSpec],
    rescaled: Mapping[str, UnitChange],
    steps: list[MigrationStep],
) -> Predicted:
    kept: dict[tuple[str, str], Prediction] = {}
    for key, prediction in before.predictions.items():
        channel = prediction.channel
        if channel in specs and channel not in rescaled:
            kept[key] = prediction
        else:
            why = "its unit changed" if channel in specs else "the channel is gone"
            detail = f"of model {prediction.model_id}: {why}"
            steps.append(MigrationStep(part=f"predicted.{channel}", effect=MigrationEffect.DROPPED, detail=detail))
    if kept:
        steps.append(MigrationStep(part="predicted", effect=MigrationEffect.CARRIED, detail=str(len(kept))))
    if len(kept) == len(before.predictions):
        return before
    return Predicted(revision=before.revision + 1, predictions=kept)


def _commands(
    state: TwinState, target: TwinType, offset: int, commit_time_unix_us: int, steps: list[MigrationStep]
) -> dict[str, Command]:
    """Return the commands that have no place in the version, cancelled."""
    changed: dict[str, Command] = {}
    for command in state.open_commands():
        wrong = _command_fault(command, target)
        if wrong:
            changed[command.command_id] = _cancelled(command, wrong, offset, commit_time_unix_us)
            steps.append(
                MigrationStep(part=f"commands.{command.command_id}", effect=MigrationEffect.DROPPED, detail=wrong)
            )
    return changed


def _command_fault(command: Command, target: TwinType) -> str:
    spec = target.command(command.name)
    if spec is None:
        return f"{target.reference} has no command {quoted(command.name)}"
    if spec.args and command.state is CommandState.QUEUED:
        try:
            checked_values(spec.args, command.args, "args", owner=f"the command {quoted(spec.name)}")
        except InvalidArgument as error:
            return error.message
    return ""


def _cancelled(command: Command, why: str, offset: int, commit_time_unix_us: int) -> Command:
    return replace(
        command,
        state=CommandState.CANCELLED,
        message=why,
        offset=offset,
        update_time_unix_us=commit_time_unix_us,
    )


def _event(
    state: TwinState,
    plan: MigrationPlan,
    target: TwinType,
    lost: list[MigrationStep],
    offset: int,
    commit_time_unix_us: int,
) -> Event:
    parts = "; ".join(f"{step.part} {step.effect.name}: {step.detail}" for step in lost)
    text = f"From version {plan.from_version} of {target.twin_type_id} to {target.version}."
    message = f"{text} {parts}".strip()
    return Event(
        event_id=f"migrated-{offset}",
        twin_id=state.twin.twin_id,
        kind=EventKind.NOTE,
        start_time_unix_us=commit_time_unix_us,
        mode="migration",
        message=message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…",
        offset=offset,
    )
