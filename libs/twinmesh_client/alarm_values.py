"""What state-sync says of alarms and subscriptions, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import alarm_pb2
from twinmesh_client.durations import Span, proto_span
from twinmesh_client.registry_mapping import duration_from_message
from twinmesh_client.values import Scalar, enum_name, from_proto
from twinmesh_core.errors import invalid_field
from twinmesh_core.rules import severity_name
from twinmesh_core.time import US_PER_S, to_datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """The alarm of one rule of one twin.

    Attributes:
        state: ACTIVE, ACKNOWLEDGED, RETURNED (over, nobody acknowledged it) or CLEARED.
        severity: 1 to 1,000; see `priority`.
        level: which limit is crossed.
        value: the value that raised it, or changed its level.
        limit: the limit that it crossed.
        raise_count: how often it was raised, ever; give it to `acknowledge` to acknowledge only what was seen.
        suppressed_by: the maintenance event that covers the twin; "" = none.
        transition: what happened last: RAISED, LEVEL_CHANGED, ACKNOWLEDGED, RETURNED, CLEARED, SHELVED, ...
        offset: of the entry that did it.
    """

    twin_id: str
    rule: str
    state: str
    severity: int
    level: str
    message: str
    channel: str
    value: Scalar | None
    limit: float | None
    raise_count: int
    first_raise_time: datetime | None
    last_raise_time: datetime | None
    return_time: datetime | None
    acknowledge_time: datetime | None
    acknowledged_by: str
    acknowledge_note: str
    shelved_until: datetime | None
    shelved_by: str
    shelve_note: str
    suppressed_by: str
    out_of_service_by: str
    transition: str
    transition_time: datetime | None
    offset: int

    @property
    def priority(self) -> str:
        """CRITICAL, HIGH, MEDIUM or LOW."""
        return severity_name(self.severity)

    @property
    def active(self) -> bool:
        """Whether the condition holds."""
        return self.state in ("ACTIVE", "ACKNOWLEDGED")

    @property
    def told(self) -> bool:
        """Whether anybody is told of it: not shelved, suppressed or out of service."""
        return not (self.shelved_until or self.suppressed_by or self.out_of_service_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """Who is told of what, and how its deliveries go; secrets are never among it.

    Attributes:
        kind: ``webhook`` or ``mqtt``.
        pending: deliveries that wait, or are being tried again.
        dead: given up and kept; `Subscriptions.retry` tries them again.
        missed: how often more came than could be kept for it.
    """

    subscription_id: str
    kind: str
    url: str
    topic: str
    kinds: tuple[str, ...]
    min_severity: int
    twin_type: str
    twin_ids: tuple[str, ...]
    retry_for_s: float
    description: str
    created_by: str
    create_time: datetime
    through_offset: int
    pending: int
    dead: int
    delivered: int
    failed_attempts: int
    given_up: int
    missed: int
    last_success_time: datetime | None
    last_failure_time: datetime | None
    last_error: str
    oldest_pending_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSubscription:
    """A subscription just created, and the secret that signs its deliveries: told this once."""

    subscription: Subscription
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatedSecret:
    """The secret that signs from now on, told this once; the one before signs too until `previous_end_time`."""

    secret: str
    previous_end_time: datetime


def alarm(message: alarm_pb2.Alarm) -> Alarm:
    """Return an alarm."""
    return Alarm(
        twin_id=message.twin_id,
        rule=message.rule,
        state=alarm_pb2.AlarmState.Name(message.state).removeprefix("ALARM_STATE_"),
        severity=message.severity,
        level=message.level,
        message=message.message,
        channel=message.channel,
        value=from_proto(message.value) if message.HasField("value") else None,
        limit=message.limit if message.HasField("limit") else None,
        raise_count=message.raise_count,
        first_raise_time=_moment(message.first_raise_time),
        last_raise_time=_moment(message.last_raise_time),
        return_time=_moment(message.return_time),
        acknowledge_time=_moment(message.acknowledge_time),
        acknowledged_by=message.acknowledged_by,
        acknowledge_note=message.acknowledge_note,
        shelved_until=_moment(message.shelved_until),
        shelved_by=message.shelved_by,
        shelve_note=message.shelve_note,
        suppressed_by=message.suppressed_by,
        out_of_service_by=message.out_of_service_by,
        transition=alarm_pb2.AlarmTransition.Name(message.transition).removeprefix("ALARM_TRANSITION_"),
        transition_time=_moment(message.transition_time),
        offset=message.offset,
    )


def states_to_proto(states: Sequence[str]) -> list[alarm_pb2.AlarmState.ValueType]:
    """Return states by their names, in any case; raises `InvalidArgument`."""
    names = alarm_pb2.AlarmState.keys()
    return [alarm_pb2.AlarmState.Value(enum_name(names, "ALARM_STATE", state, "states")) for state in states]


def subscription_message(
    subscription_id: str,
    *,
    url: str,
    topic: str,
    secret: str,
    username: str,
    password: str,
    kinds: Sequence[str],
    min_severity: int,
    twin_type: str,
    twin_ids: Sequence[str],
    retry_for: Span | None,
    description: str,
) -> statesync_pb2.Subscription:
    """Return a subscription to be created; raises `InvalidArgument`."""
    names = statesync_pb2.NoticeKind.keys()
    message = statesync_pb2.Subscription(
        subscription_id=subscription_id,
        kinds=[statesync_pb2.NoticeKind.Value(enum_name(names, "NOTICE_KIND", kind, "kinds")) for kind in kinds],
        min_severity=min_severity,
        twin_type_id=twin_type,
        twin_ids=twin_ids,
        description=description,
    )
    if url.startswith(("mqtt://", "mqtts://")):
        target = statesync_pb2.MqttTarget(url=url, topic=topic, username=username, password=password, secret=secret)
        message.mqtt.CopyFrom(target)
    elif topic or username or password:
        raise invalid_field("topic", "topic, username and password are for mqtt:// and mqtts://")
    else:
        message.webhook.CopyFrom(statesync_pb2.WebhookTarget(url=url, secret=secret))
    if retry_for is not None:
        message.retry_for.CopyFrom(proto_span(retry_for, "retry_for"))
    return message


def subscription(message: statesync_pb2.Subscription) -> Subscription:
    """Return a subscription."""
    kind, status = message.WhichOneof("target") or "", message.status
    return Subscription(
        subscription_id=message.subscription_id,
        kind=kind,
        url=message.mqtt.url if kind == "mqtt" else message.webhook.url,
        topic=message.mqtt.topic,
        kinds=tuple(statesync_pb2.NoticeKind.Name(k).removeprefix("NOTICE_KIND_") for k in message.kinds),
        min_severity=message.min_severity,
        twin_type=message.twin_type_id,
        twin_ids=tuple(message.twin_ids),
        retry_for_s=duration_from_message(message.retry_for) / US_PER_S,
        description=message.description,
        created_by=message.created_by,
        create_time=message.create_time.ToDatetime(tzinfo=to_datetime(0).tzinfo),
        through_offset=message.through.offset,
        pending=status.pending_count,
        dead=status.dead_count,
        delivered=status.delivered_count,
        failed_attempts=status.failed_attempt_count,
        given_up=status.given_up_count,
        missed=status.missed_count,
        last_success_time=_moment(status.last_success_time),
        last_failure_time=_moment(status.last_failure_time),
        last_error=status.last_error,
        oldest_pending_time=_moment(status.oldest_pending_time),
    )


def alarms_by_rule(messages: Sequence[alarm_pb2.Alarm]) -> Mapping[str, Alarm]:
    """Return alarms of one twin by rule."""
    return {message.rule: alarm(message) for message in messages}


def _moment(message: Timestamp) -> datetime | None:
    time_unix_us = message.seconds * US_PER_S + message.nanos // 1_000
    return to_datetime(time_unix_us) if time_unix_us else None
