"""Deliveries to receivers that fail, hang, vanish and come back; and to a real broker."""

import base64
import hashlib
import hmac
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.integration.connectors.conftest import until
from tests.integration.connectors.mosquitto import Mosquitto
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage
from tests.integration.statesync.receiver import Received, Receiver, receiver
from tests.integration.statesync.test_alarms import make_boiler, now_us, rule, watching
from tests.integration.statesync.test_killed import once_ready, process

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import event_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import AlreadyExists, InvalidArgument, NotFound

FAST = {
    "delivery_allowed_networks": "127.0.0.0/8",
    "delivery_timeout_s": 0.5,
    "delivery_first_pause_s": 0.05,
    "checkpoint_interval_s": 0.2,
}


async def subscribe(sync: StateSync, url: str, name: str = "ops", **more: Any) -> Any:
    target = statesync_pb2.WebhookTarget(url=url)
    wanted = statesync_pb2.Subscription(subscription_id=name, webhook=target, **more)
    request = statesync_pb2.CreateSubscriptionRequest(subscription=wanted, request_id=f"make-{name}")
    return await call(sync.subscriptions.CreateSubscription, request, timeout_s=TIMEOUT_S)


async def status(sync: StateSync, name: str = "ops") -> Any:
    request = statesync_pb2.GetSubscriptionRequest(subscription_id=name)
    return (await call(sync.subscriptions.GetSubscription, request, timeout_s=TIMEOUT_S)).subscription.status


async def raise_and_return(sync: StateSync, times: int = 1) -> None:
    for _ in range(times):
        await sync.observe("b", "oil", [now_us()], [95.0])
        await sync.observe("b", "oil", [now_us()], [20.0])


@asynccontextmanager
async def boiler(database_url: str, **more: Any) -> AsyncIterator[tuple[StateSync, Receiver]]:
    async with (
        storage(database_url) as target,
        statesync(database_url, target, **FAST | more) as sync,
        receiver() as hook,
    ):
        await make_boiler(sync, rule())
        yield sync, hook


async def given_up(sync: StateSync) -> bool:
    found = await status(sync)
    return (found.dead_count, found.given_up_count, found.pending_count) == (1, 1, 0)


async def next_events(frames: Any) -> list[Any]:
    """Return the next events of twins that a watch tells."""
    async for frame in frames:
        found = [event for change in frame.events for event in change.events]
        if found:
            return found
    raise AssertionError("the watch ended")


def signature(secret: str, got: Received) -> str:
    """What docs/alarms.md tells a receiver to compute."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


async def test_a_signed_webhook_in_order(database_url: str) -> None:
    async with boiler(database_url) as (sync, hook):
        made = await subscribe(sync, f"{hook.url}/hook?a=1")
        assert not made.subscription.webhook.secret
        again = await subscribe(sync, f"{hook.url}/hook?a=1")
        assert again.secret == made.secret, "a repeated request is answered as the first"
        await raise_and_return(sync, 2)
        await hook.until(lambda: len(hook.received) == 4)
        assert hook.types() == ["alarm.raised", "alarm.returned"] * 2
        assert all(got.headers["webhook-signature"] == signature(made.secret, got) for got in hook.received)
        first = hook.received[0].message
        assert first["data"]["alarm"]["value"] == 95.0
        assert first["id"] == hook.received[0].id
        assert abs(int(hook.received[0].headers["webhook-timestamp"]) - time.time()) < 30
        found = await status(sync)
        assert (found.failed_attempt_count, found.dead_count) == (0, 0)


async def test_a_secret_is_changed_without_a_receiver_that_refuses(database_url: str) -> None:
    async with boiler(database_url) as (sync, hook):
        old = (await subscribe(sync, hook.url)).secret

        async def rotate(**fields: Any) -> Any:
            request = statesync_pb2.RotateSecretRequest(subscription_id="ops", **fields)
            return await call(sync.subscriptions.RotateSecret, request, timeout_s=TIMEOUT_S)

        async def told() -> list[str]:
            """Return which secrets signed the next delivery."""
            seen = len(hook.received)
            await raise_and_return(sync)
            await hook.until(lambda: len(hook.received) == seen + 2)
            got = hook.received[-1]
            given = got.headers["webhook-signature"].split()
            names = {signature(secret, got): name for name, secret in secrets.items()}
            return [names.get(one, "unknown") for one in given]

        secrets = {"old": old}
        assert await told() == ["old"]
        first = await rotate(request_id="one")
        secrets["new"] = first.secret
        assert await rotate(request_id="one") == first, "a repeated request is answered as the first"
        assert abs(first.previous_end_time.ToSeconds() - time.time() - 86_400) < 30
        assert await told() == ["new", "old"]
        last = await rotate(overlap=Duration(), secret="whsec_" + base64.b64encode(b"k" * 32).decode())
        secrets["last"] = last.secret
        assert await told() == ["last"], "a secret that has leaked signs no more"
        for fields, named in (
            ({"secret": "whsec_AAAA"}, "secret"),
            ({"overlap": Duration(seconds=8 * 86_400)}, "overlap"),
            ({"overlap": Duration(seconds=-1)}, "overlap"),
        ):
            with pytest.raises(InvalidArgument) as refused:
                await rotate(**fields)
            assert [violation.field for violation in refused.value.field_violations] == [named]
        assert await told() == ["last"]


async def test_a_receiver_that_fails_and_hangs_gets_everything_in_order(database_url: str) -> None:
    async with boiler(database_url) as (sync, hook):
        answers: Iterator[int | None] = iter([500, None, 302, 204, 503])
        hook.answer = lambda _: next(answers, 200)
        await subscribe(sync, hook.url)
        await raise_and_return(sync, 2)
        await hook.until(lambda: len({got.id for got in hook.received}) == 4)
        assert hook.types() == ["alarm.raised", "alarm.returned"] * 2
        bodies = {got.id: got.body for got in hook.received}
        assert all(bodies[got.id] == got.body for got in hook.received), "the same id is the same body"
        found = await status(sync)
        assert found.failed_attempt_count == 4
        assert found.last_error


async def test_what_is_given_up_is_seen_and_can_be_tried_again(database_url: str) -> None:
    async with boiler(database_url) as (sync, hook):
        hook.answer = lambda _: 500
        await subscribe(sync, hook.url, retry_for=Duration(seconds=1), kinds=[1, 2])
        async with watching(sync) as frames:
            await sync.observe("b", "oil", [now_us()], [95.0])
            told = await next_events(frames)
        assert (told[0].kind, told[0].mode) == (event_pb2.EVENT_KIND_DELIVERY_FAILED, "ops")
        assert "the receiver answered 500" in told[0].message
        # The event comes first, so that a process which dies in between leaves one too many rather than none.
        await until(lambda: given_up(sync))
        hook.answer = lambda _: 200
        seen = len(hook.received)
        request = statesync_pb2.RetryDeliveriesRequest(subscription_id="ops")
        assert (await call(sync.subscriptions.RetryDeliveries, request, timeout_s=TIMEOUT_S)).revived_count == 1
        await hook.until(lambda: len(hook.received) > seen)
        assert hook.received[-1].message["type"] == "alarm.raised"
        assert len({got.id for got in hook.received}) == 1, (
            "its own failure is not told to the subscription that failed"
        )


async def test_filters_and_quiet_alarms(database_url: str) -> None:
    async with boiler(database_url) as (sync, hook):
        await subscribe(sync, hook.url, "severe", min_severity=900)
        await subscribe(sync, hook.url, "other", twin_ids=["c"])
        await subscribe(sync, hook.url, "twins", kinds=[3], twin_type_id="boiler")
        await subscribe(sync, hook.url, "ops")
        shelve = statesync_pb2.ShelveAlarmRequest(twin_id="b", rule="hot", duration=Duration(seconds=600))
        await call(sync.alarms.ShelveAlarm, shelve, timeout_s=TIMEOUT_S)
        await raise_and_return(sync)
        await call(
            sync.alarms.UnshelveAlarm, statesync_pb2.UnshelveAlarmRequest(twin_id="b", rule="hot"), timeout_s=TIMEOUT_S
        )
        await sync.observe("b", "oil", [now_us()], [95.0])
        await hook.until(lambda: {"alarm.raised", "twin.connectivity"} <= set(hook.types()))
        assert hook.types().count("alarm.raised") == 1


async def test_what_may_not_be_reached(database_url: str) -> None:
    async with boiler(database_url, delivery_allowed_networks="") as (sync, hook):
        await subscribe(sync, hook.url, retry_for=Duration(seconds=1))
        async with watching(sync) as frames:
            await sync.observe("b", "oil", [now_us()], [95.0])
            await next_events(frames)
        await until(lambda: given_up(sync))
        assert "TWINMESH_STATESYNC_DELIVERY_ALLOWED_NETWORKS" in (await status(sync)).last_error
        assert hook.received == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"webhook": {"url": "ftp://a"}}, "target.url"),
    ({"webhook": {"url": "https://u:p@a/"}}, "target.url"),
    ({"webhook": {"url": "https://a/", "secret": "whsec_AAAA"}}, "target.secret"),
    ({"mqtt": {"url": "mqtts://a"}}, "target.topic"),
    ({"mqtt": {"url": "https://a", "topic": "t"}}, "mqtt.url"),
    ({"webhook": {"url": "https://a/"}, "min_severity": 1_001}, "min_severity"),
    ({"webhook": {"url": "https://a/"}, "retry_for": Duration(seconds=800_000)}, "retry_for"),
    ({}, "target"),
]


async def test_wrong_subscriptions_name_the_field(database_url: str) -> None:
    async with boiler(database_url) as (sync, _):
        for change, field in WRONG:
            wanted = statesync_pb2.Subscription(subscription_id="ops", **change)
            request = statesync_pb2.CreateSubscriptionRequest(subscription=wanted)
            with pytest.raises(InvalidArgument) as caught:
                await call(sync.subscriptions.CreateSubscription, request, timeout_s=TIMEOUT_S)
            assert field in caught.value.field_violations[0].field


async def test_a_deleted_subscription_is_told_no_more(database_url: str) -> None:
    async with boiler(database_url) as (sync, hook):
        await subscribe(sync, hook.url)
        await subscribe(sync, hook.url, "other")
        taken = statesync_pb2.Subscription(subscription_id="ops", webhook=statesync_pb2.WebhookTarget(url=hook.url))
        request = statesync_pb2.CreateSubscriptionRequest(subscription=taken)
        with pytest.raises(AlreadyExists):
            await call(sync.subscriptions.CreateSubscription, request, timeout_s=TIMEOUT_S)
        gone = statesync_pb2.DeleteSubscriptionRequest(subscription_id="ops")
        await call(sync.subscriptions.DeleteSubscription, gone, timeout_s=TIMEOUT_S)
        with pytest.raises(NotFound):
            await status(sync)
        await raise_and_return(sync)
        await hook.until(lambda: len(hook.received) == 2)
        listed = await call(
            sync.subscriptions.ListSubscriptions, statesync_pb2.ListSubscriptionsRequest(), timeout_s=TIMEOUT_S
        )
        assert [s.subscription_id for s in listed.subscriptions] == ["other"]


@pytest.mark.faults
@pytest.mark.slow
async def test_killed_in_mid_delivery_and_nothing_is_lost(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FAST.items():
        monkeypatch.setenv(f"TWINMESH_STATESYNC_{name.upper()}", str(value))
    async with (
        storage(database_url) as target,
        process(database_url, target) as (running, sync),
        receiver() as hook,
    ):
        await once_ready(sync)
        await make_boiler(sync, rule())
        await subscribe(sync, hook.url)
        hook.answer = lambda _: None
        await raise_and_return(sync, 5)
        await hook.until(lambda: hook.received)
        await running.end(signal.SIGKILL)
        await raise_and_return(sync, 5)
        hook.answer = lambda _: 200
        await running.start()
        await hook.until(lambda: len({got.id for got in hook.received}) == 20)
        assert hook.types() == ["alarm.raised", "alarm.returned"] * 10


async def test_a_broker_gets_them_at_least_once(database_url: str, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    came: list[tuple[str, bytes]] = []
    reader: Any = paho.Client(CallbackAPIVersion.VERSION2, client_id="reader", protocol=paho.MQTTv5)
    subscribed: list[int] = []
    reader.on_connect = lambda client, *_: client.subscribe("plant/#", qos=1)
    reader.on_subscribe = lambda _c, _d, number, *_: subscribed.append(number)
    reader.on_message = lambda _c, _d, message: came.append((message.topic, bytes(message.payload)))
    try:
        async with boiler(database_url, delivery_timeout_s=2.0) as (sync, hook):
            target = statesync_pb2.MqttTarget(url=f"mqtt://127.0.0.1:{broker.port}", topic="plant/alarms")
            wanted = statesync_pb2.Subscription(subscription_id="mq", mqtt=target)
            request = statesync_pb2.CreateSubscriptionRequest(subscription=wanted)
            await call(sync.subscriptions.CreateSubscription, request, timeout_s=TIMEOUT_S)
            await subscribe(sync, hook.url)
            # A session that the broker keeps: what is published before the reader is back waits for it.
            kept = Properties(PacketTypes.CONNECT)
            kept.SessionExpiryInterval = 600
            reader.connect("127.0.0.1", broker.port, clean_start=False, properties=kept)
            reader.loop_start()
            await until(lambda: subscribed)
            await raise_and_return(sync)
            await until(lambda: len(set(came)) == 2)
            broker.stop(signal.SIGKILL)
            await raise_and_return(sync)
            await hook.until(lambda: len(hook.received) == 4)
            broker.start()
            await until(lambda: len(set(came)) == 4)
        assert {topic for topic, _ in came} == {"plant/alarms/b/hot"}
        assert len(set(came)) == 4
    finally:
        reader.disconnect()
        reader.loop_stop()
        broker.stop()
