"""SubscriptionService: who is told of alarms and events, and how their deliveries go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import SubscriptionServiceServicer
from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_resource_id
from twinmesh_core.time import Clock
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.registry_mapping import duration_from_message, duration_to_message, time_to_message
from twinmesh_statesync.domain.delivery.dispatcher import Dispatcher
from twinmesh_statesync.domain.delivery.notices import NoticeKind
from twinmesh_statesync.domain.delivery.ports import Outbox
from twinmesh_statesync.domain.delivery.subscriptions import (
    DEFAULT_OVERLAP_US,
    DEFAULT_RETRY_US,
    Status,
    Subscription,
    Target,
    Wanted,
    checked,
)
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.writer import request_id_or_new
from twinmesh_statesync.rpc.mapping.values import position_to_message

_KINDS: Final = {int(kind): kind for kind in NoticeKind}


class SubscriptionServicer(SubscriptionServiceServicer):
    """Serves subscriptions.

    Args:
        live: says from where on a new subscription is told.
        outbox: keeps them.
        dispatcher: delivers; woken when there is something new.
        clock: the time.
    """

    def __init__(self, live: LiveFold, outbox: Outbox, dispatcher: Dispatcher, clock: Clock) -> None:
        self._live = live
        self._outbox = outbox
        self._dispatcher = dispatcher
        self._clock = clock

    async def CreateSubscription(  # noqa: N802
        self, request: statesync_pb2.CreateSubscriptionRequest, context: Any
    ) -> statesync_pb2.CreateSubscriptionResponse:
        """Create a subscription."""
        caller = current_caller()
        await self._live.check()
        wanted = checked(_from_message(request.subscription, caller.tenant))
        made = replace(
            wanted,
            created_by=caller.principal,
            create_unix_us=self._clock.now_unix_us(),
            through=self._live.position,
        )
        stored = await self._outbox.create(made, request_id=request_id_or_new(request.request_id))
        self._dispatcher.wake()
        return statesync_pb2.CreateSubscriptionResponse(subscription=_to_message(stored), secret=stored.target.secret)

    async def GetSubscription(  # noqa: N802
        self, request: statesync_pb2.GetSubscriptionRequest, context: Any
    ) -> statesync_pb2.GetSubscriptionResponse:
        """Return a subscription."""
        require_resource_id(request.subscription_id, "subscription_id")
        found = await self._outbox.get(current_caller().tenant, request.subscription_id)
        return statesync_pb2.GetSubscriptionResponse(subscription=_to_message(found))

    async def ListSubscriptions(  # noqa: N802
        self, request: statesync_pb2.ListSubscriptionsRequest, context: Any
    ) -> statesync_pb2.ListSubscriptionsResponse:
        """List all subscriptions."""
        found = await self._outbox.of_tenant(current_caller().tenant)
        return statesync_pb2.ListSubscriptionsResponse(subscriptions=map(_to_message, found))

    async def DeleteSubscription(  # noqa: N802
        self, request: statesync_pb2.DeleteSubscriptionRequest, context: Any
    ) -> statesync_pb2.DeleteSubscriptionResponse:
        """Delete a subscription."""
        require_resource_id(request.subscription_id, "subscription_id")
        await self._outbox.delete(current_caller().tenant, request.subscription_id)
        return statesync_pb2.DeleteSubscriptionResponse()

    async def RotateSecret(  # noqa: N802
        self, request: statesync_pb2.RotateSecretRequest, context: Any
    ) -> statesync_pb2.RotateSecretResponse:
        """Give a subscription another secret."""
        require_resource_id(request.subscription_id, "subscription_id")
        overlap_us = duration_from_message(request.overlap) if request.HasField("overlap") else DEFAULT_OVERLAP_US
        now_unix_us = self._clock.now_unix_us()
        made = await self._outbox.rotate(
            current_caller().tenant,
            request.subscription_id,
            lambda target: target.rotated(request.secret, overlap_us, now_unix_us),
            request_id=request_id_or_new(request.request_id),
        )
        self._dispatcher.wake()
        return statesync_pb2.RotateSecretResponse(
            secret=made.secret, previous_end_time=time_to_message(made.previous_until_unix_us)
        )

    async def RetryDeliveries(  # noqa: N802
        self, request: statesync_pb2.RetryDeliveriesRequest, context: Any
    ) -> statesync_pb2.RetryDeliveriesResponse:
        """Try again what was given up."""
        tenant = current_caller().tenant
        require_resource_id(request.subscription_id, "subscription_id")
        await self._outbox.get(tenant, request.subscription_id)
        now_unix_us = self._clock.now_unix_us()
        count = await self._outbox.revive(tenant, request.subscription_id, now_unix_us=now_unix_us)
        self._dispatcher.wake()
        return statesync_pb2.RetryDeliveriesResponse(revived_count=count)


def _from_message(message: statesync_pb2.Subscription, tenant: str) -> Subscription:
    return Subscription(
        tenant=tenant,
        subscription_id=message.subscription_id,
        target=_target(message),
        wanted=Wanted(
            kinds=tuple(dict.fromkeys(_KINDS.get(kind, NoticeKind.UNSPECIFIED) for kind in message.kinds))
            or (NoticeKind.ALARM,),
            min_severity=message.min_severity,
            twin_type_id=message.twin_type_id,
            twin_ids=frozenset(message.twin_ids),
        ),
        retry_for_us=duration_from_message(message.retry_for) or DEFAULT_RETRY_US,
        description=message.description,
    )


def _target(message: statesync_pb2.Subscription) -> Target:
    kind = message.WhichOneof("target")
    if kind == "mqtt":
        m = message.mqtt
        found = Target(url=m.url, secret=m.secret, topic=m.topic, username=m.username, password=m.password)
    elif kind == "webhook":
        found = Target(url=message.webhook.url, secret=message.webhook.secret)
    else:
        raise invalid_field("subscription.target", "is required: webhook or mqtt")
    if found.kind and found.kind != kind:
        raise invalid_field(f"subscription.{kind}.url", f"is the address of a {found.kind} target")
    return found


def _to_message(value: Subscription) -> statesync_pb2.Subscription:
    target = value.target
    message = statesync_pb2.Subscription(
        subscription_id=value.subscription_id,
        kinds=[statesync_pb2.NoticeKind.ValueType(kind) for kind in value.wanted.kinds],
        min_severity=value.wanted.min_severity,
        twin_type_id=value.wanted.twin_type_id,
        twin_ids=sorted(value.wanted.twin_ids),
        retry_for=duration_to_message(value.retry_for_us),
        description=value.description,
        created_by=value.created_by,
        create_time=time_to_message(value.create_unix_us),
        through=position_to_message(value.through),
        status=_status(value.status),
    )
    if target.kind == "mqtt":
        message.mqtt.CopyFrom(statesync_pb2.MqttTarget(url=target.url, topic=target.topic, username=target.username))
    else:
        message.webhook.url = target.url
    return message


def _status(status: Status) -> statesync_pb2.DeliveryStatus:
    message = statesync_pb2.DeliveryStatus(
        pending_count=status.pending,
        dead_count=status.dead,
        delivered_count=status.delivered,
        failed_attempt_count=status.failed_attempts,
        given_up_count=status.given_up,
        last_error=status.last_error,
        missed_count=status.missed,
    )
    for field, time_unix_us in (
        ("last_success_time", status.last_success_unix_us),
        ("last_failure_time", status.last_failure_unix_us),
        ("oldest_pending_time", status.oldest_pending_unix_us),
    ):
        if time_unix_us:
            getattr(message, field).CopyFrom(time_to_message(time_unix_us))
    return message
