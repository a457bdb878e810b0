"""Alarms of a mesh, and who is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.alarm_values import (
    Alarm,
    NewSubscription,
    RotatedSecret,
    Subscription,
    alarm,
    states_to_proto,
    subscription,
    subscription_message,
)
from twinmesh_client.durations import Span, proto_span
from twinmesh_client.transport import call

PAGE = 1_000


class Alarms:
    """Alarms raised by the rules of twin types; they are also in every replica, and in every watch."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(
        self,
        twin_id: str = "",
        *,
        type: str = "",  # noqa: A002  the word of the field, as in `twins.list`
        states: Sequence[str] = (),
        min_severity: int = 0,
        only_told: bool = False,
        min_offset: int = 0,
    ) -> list[Alarm]:
        """Return alarms by twin and rule.

        Args:
            twin_id: only of this twin; "" = all.
            type: only of twins of this type; "" = all.
            states: active, acknowledged, returned, cleared; none = all but the last.
            min_severity: only those at least so severe, 1 to 1,000.
            only_told: leave out those that are shelved, suppressed or out of service.
            min_offset: waits until the answer reflects it.
        """
        found: list[Alarm] = []
        token = ""
        while True:
            request = statesync_pb2.ListAlarmsRequest(
                twin_id=twin_id,
                twin_type_id=type,
                states=states_to_proto(states),
                min_severity=min_severity,
                only_told=only_told,
                min_offset=min_offset,
                page_size=PAGE,
                page_token=token,
            )
            answer = await call(self._connection.alarms.ListAlarms, request, timeout_s=self._connection.timeout_s)
            found.extend(map(alarm, answer.alarms))
            token = answer.next_page_token
            if not token:
                return found

    async def get(self, twin_id: str, rule: str, *, min_offset: int = 0) -> Alarm:
        """Return an alarm; one that was never raised is CLEARED. Raises `NotFound` where there is no such rule."""
        request = statesync_pb2.GetAlarmRequest(twin_id=twin_id, rule=rule, min_offset=min_offset)
        answer = await call(self._connection.alarms.GetAlarm, request, timeout_s=self._connection.timeout_s)
        return alarm(answer.alarm)

    async def acknowledge(self, twin_id: str, rule: str, *, note: str = "", if_raise_count: int = 0) -> Alarm:
        """Say that somebody knows; returns the alarm now.

        Args:
            twin_id: the twin.
            rule: the rule.
            note: for others.
            if_raise_count: only if it was raised so often, as seen; 0 = whatever it is now.

        Raises:
            Conflict: it was raised again meanwhile.
            FailedPrecondition: there is nothing to acknowledge.
        """
        request = statesync_pb2.AcknowledgeAlarmRequest(
            twin_id=twin_id, rule=rule, note=note, if_raise_count=if_raise_count, request_id=new_request_id()
        )
        answer = await call(self._connection.alarms.AcknowledgeAlarm, request, timeout_s=self._connection.timeout_s)
        return alarm(answer.alarm)

    async def shelve(self, twin_id: str, rule: str, duration: Span, *, note: str = "") -> Alarm:
        """Have nobody told of an alarm for a while, at most 30 days; its state goes on."""
        request = statesync_pb2.ShelveAlarmRequest(
            twin_id=twin_id,
            rule=rule,
            duration=proto_span(duration, "duration"),
            note=note,
            request_id=new_request_id(),
        )
        answer = await call(self._connection.alarms.ShelveAlarm, request, timeout_s=self._connection.timeout_s)
        return alarm(answer.alarm)

    async def unshelve(self, twin_id: str, rule: str) -> Alarm:
        """End a shelving before its time; raises `FailedPrecondition` where there is none."""
        request = statesync_pb2.UnshelveAlarmRequest(twin_id=twin_id, rule=rule, request_id=new_request_id())
        answer = await call(self._connection.alarms.UnshelveAlarm, request, timeout_s=self._connection.timeout_s)
        return alarm(answer.alarm)

    async def set_service(self, twin_id: str, rule: str, *, out_of_service: bool) -> Alarm:
        """Take an alarm out of service until it is put back: nobody is told of it; its state goes on."""
        request = statesync_pb2.SetAlarmServiceRequest(
            twin_id=twin_id, rule=rule, out_of_service=out_of_service, request_id=new_request_id()
        )
        answer = await call(self._connection.alarms.SetAlarmService, request, timeout_s=self._connection.timeout_s)
        return alarm(answer.alarm)


class Subscriptions:
    """Who is told of alarms and events, by signed webhook or MQTT."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        subscription_id: str,
        url: str,
        *,
        topic: str = "",
        secret: str = "",
        username: str = "",
        password: str = "",
        kinds: Sequence[str] = ("alarm",),
        min_severity: int = 0,
        type: str = "",  # noqa: A002  as in `Alarms.list`
        twin_ids: Sequence[str] = (),
        retry_for: Span | None = None,
        description: str = "",
    ) -> NewSubscription:
        """Create a subscription, from now on; returns the secret that signs its deliveries, this once.

        Args:
            subscription_id: chosen by you.
            url: ``https://...`` of a webhook, ``mqtts://host:port`` of a broker.
            topic: where to publish, for a broker.
            secret: ``whsec_`` and base64; "" = made up.
            username: for a broker.
            password: for a broker.
            kinds: alarm, event, twin.
            min_severity: alarms at least so severe, 1 to 1,000.
            type: only twins of this type; "" = all.
            twin_ids: only these twins; none = all.
            retry_for: how long a delivery is tried; None = 24 h.
            description: for people.

        Raises:
            InvalidArgument: names the field.
            AlreadyExists: the id is taken.
        """
        wanted = subscription_message(
            subscription_id,
            url=url,
            topic=topic,
            secret=secret,
            username=username,
            password=password,
            kinds=kinds,
            min_severity=min_severity,
            twin_type=type,
            twin_ids=twin_ids,
            retry_for=retry_for,
            description=description,
        )
        request = statesync_pb2.CreateSubscriptionRequest(subscription=wanted, request_id=new_request_id())
        answer = await call(
            self._connection.subscriptions.CreateSubscription, request, timeout_s=self._connection.timeout_s
        )
        return NewSubscription(subscription=subscription(answer.subscription), secret=answer.secret)

    async def get(self, subscription_id: str) -> Subscription:
        """Return a subscription and how its deliveries go; raises `NotFound`."""
        request = statesync_pb2.GetSubscriptionRequest(subscription_id=subscription_id)
        answer = await call(
            self._connection.subscriptions.GetSubscription, request, timeout_s=self._connection.timeout_s
        )
        return subscription(answer.subscription)

    async def list(self) -> list[Subscription]:
        """Return all subscriptions, by id."""
        request = statesync_pb2.ListSubscriptionsRequest()
        answer = await call(
            self._connection.subscriptions.ListSubscriptions, request, timeout_s=self._connection.timeout_s
        )
        return [subscription(s) for s in answer.subscriptions]

    async def delete(self, subscription_id: str) -> None:
        """Delete a subscription and what is on its way to it; raises `NotFound`."""
        request = statesync_pb2.DeleteSubscriptionRequest(subscription_id=subscription_id)
        await call(self._connection.subscriptions.DeleteSubscription, request, timeout_s=self._connection.timeout_s)

    async def rotate_secret(
        self, subscription_id: str, *, secret: str = "", overlap: Span | None = None, at_once: bool = False
    ) -> RotatedSecret:
        """Give a subscription another secret; returns it, this once.

        Args:
            subscription_id: whose.
            secret: ``whsec_`` and base64; "" = made up.
            overlap: how long the secret before signs too, at most 7 days; None = 24 h.
            at_once: it stops signing at once, since it has leaked; instead of `overlap`.

        Raises:
            InvalidArgument: names the field.
            NotFound: there is no such subscription.
        """
        request = statesync_pb2.RotateSecretRequest(
            subscription_id=subscription_id, secret=secret, request_id=new_request_id()
        )
        if at_once:
            request.overlap.FromSeconds(0)
        elif overlap is not None:
            request.overlap.CopyFrom(proto_span(overlap, "overlap"))
        answer = await call(self._connection.subscriptions.RotateSecret, request, timeout_s=self._connection.timeout_s)
        return RotatedSecret(secret=answer.secret, previous_end_time=answer.previous_end_time.ToDatetime(tzinfo=UTC))

    async def retry(self, subscription_id: str) -> int:
        """Try again what was given up; returns how many deliveries."""
        request = statesync_pb2.RetryDeliveriesRequest(subscription_id=subscription_id)
        answer = await call(
            self._connection.subscriptions.RetryDeliveries, request, timeout_s=self._connection.timeout_s
        )
        return int(answer.revived_count)
