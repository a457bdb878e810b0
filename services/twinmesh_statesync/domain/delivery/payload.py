"""What a receiver gets: a body in JSON, and headers that prove where it comes from.

Source: Standard Webhooks, https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from twinmesh_core.rules import severity_name
from twinmesh_core.time import US_PER_S, to_datetime
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.delivery.notices import Notice
from twinmesh_statesync.domain.delivery.subscriptions import Delivery, Subscription, Target
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.values import Json


def delivery_of(notice: Notice, subscription: Subscription, incarnation: str, now_unix_us: int) -> Delivery:
    """Return the delivery of a notice; who makes it again makes the same id."""
    about = f"{subscription.tenant}\0{subscription.subscription_id}\0{incarnation}\0{notice.key}"
    delivery_id = "msg_" + hashlib.blake2b(about.encode(), digest_size=16).hexdigest()
    event = notice.event
    return Delivery(
        tenant=subscription.tenant,
        subscription_id=subscription.subscription_id,
        delivery_id=delivery_id,
        place=notice.key,
        subject=notice.subject,
        twin_id=notice.twin_id,
        body=body_of(notice, delivery_id, incarnation),
        create_unix_us=now_unix_us,
        tells_of_failure=event is not None and event.kind is EventKind.DELIVERY_FAILED,
    )


def body_of(notice: Notice, delivery_id: str, incarnation: str) -> str:
    """Return the body: the same text for every attempt."""
    data: dict[str, Any] = {"twin_id": notice.twin_id, "twin_type": notice.twin_type_id}
    time_unix_us = notice.time_unix_us
    if notice.alarm is not None:
        data["alarm"] = _alarm(notice.alarm)
        time_unix_us = notice.alarm.transition_unix_us
    elif notice.event is not None:
        data["event"] = _event(notice.event)
    elif notice.connectivity:
        data["connectivity"] = notice.connectivity.name
    whole = {
        "id": delivery_id,
        "type": f"{notice.kind.name.lower()}.{notice.what}",
        "timestamp": _time(time_unix_us),
        "position": {"incarnation": incarnation, "offset": notice.offset},
        "data": data,
    }
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False)


def signed_headers(target: Target, delivery_id: str, now_unix_us: int, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt, with a signature by each secret that signs now."""
    timestamp_s = now_unix_us // US_PER_S
    content = f"{delivery_id}.{timestamp_s}.".encode() + body
    digests = [hmac.new(key, content, hashlib.sha256).digest() for key in target.keys(now_unix_us)]
    signature = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": signature,
    }


def _alarm(alarm: Alarm) -> dict[str, Any]:
    told = {
        "rule": alarm.rule,
        "state": alarm.state.name,
        "severity": alarm.severity,
        "priority": severity_name(alarm.severity),
        "level": alarm.level,
        "message": alarm.message,
        "channel": alarm.channel,
        "value": str(alarm.value) if isinstance(alarm.value, Json) else alarm.value,
        "limit": alarm.limit,
        "raise_count": alarm.raise_count,
        "first_raise_time": _time(alarm.first_raise_unix_us),
        "last_raise_time": _time(alarm.last_raise_unix_us),
        "return_time": _time(alarm.return_unix_us),
        "acknowledge_time": _time(alarm.acknowledge_unix_us),
        "acknowledged_by": alarm.acknowledged_by,
        "acknowledge_note": alarm.acknowledge_note,
        "shelved_until": _time(alarm.shelved_until_unix_us),
        "suppressed_by": alarm.suppressed_by,
        "out_of_service_by": alarm.out_of_service_by,
    }
    return {name: value for name, value in told.items() if value not in (None, "")}


def _event(event: Event) -> dict[str, Any]:
    told = {
        "event_id": event.event_id,
        "kind": event.kind.name,
        "start_time": _time(event.start_time_unix_us),
        "end_time": None if event.end_time_unix_us is None else _time(event.end_time_unix_us),
        "mode": event.mode,
        "message": event.message,
        "channel": event.channel,
    }
    return {name: value for name, value in told.items() if value not in (None, "")}


def _time(time_unix_us: int) -> str | None:
    return to_datetime(time_unix_us).isoformat().replace("+00:00", "Z") if time_unix_us else None
