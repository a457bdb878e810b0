"""Subscriptions: who is told of what, where, and how it went so far."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_resource_id, require_twin_id
from twinmesh_core.time import US_PER_DAY, US_PER_S
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.delivery.notices import Notice, NoticeKind, worth_telling
from twinmesh_statesync.domain.events import EventKind

MAX_SUBSCRIPTIONS: Final = 100
"""Of one tenant."""
MAX_TWIN_IDS: Final = 1_000
MAX_URL_CHARACTERS: Final = 2_000
MAX_TOPIC_BYTES: Final = 512
DEFAULT_RETRY_US: Final = US_PER_DAY
MAX_RETRY_US: Final = 7 * US_PER_DAY
DEFAULT_OVERLAP_US: Final = US_PER_DAY
MAX_OVERLAP_US: Final = 7 * US_PER_DAY
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  it tells a secret, and is none
_SECRET_BYTES: Final = (24, 64)
_SCHEMES: Final = {"https": "webhook", "http": "webhook", "mqtt": "mqtt", "mqtts": "mqtt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where notices go; what is secret is never told again.

    Attributes:
        url: ``https://...`` (or http) of a webhook, ``mqtts://host:port`` (or mqtt) of a broker.
        secret: ``whsec_`` and base64: signs every delivery.
        topic: MQTT: where to publish; the subject is appended.
        username: MQTT.
        password: MQTT.
        previous_secret: signed before `secret`, and signs beside it for a while; "" = there was none.
        previous_until_unix_us: until when.
    """

    url: str
    secret: str = field(default="", repr=False)
    topic: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    previous_secret: str = field(default="", repr=False)
    previous_until_unix_us: int = 0

    @property
    def kind(self) -> str:
        """``webhook`` or ``mqtt``."""
        return _SCHEMES.get(urlsplit(self.url).scheme, "")

    def keys(self, now_unix_us: int) -> list[bytes]:
        """Return the bytes that sign at a time, the newest first."""
        previous = [self.previous_secret] if self.previous_secret and now_unix_us < self.previous_until_unix_us else []
        return [_key(secret) for secret in (self.secret, *previous)]

    def rotated(self, secret: str, overlap_us: int, now_unix_us: int) -> Target:
        """Return it with another secret ("" = made up), the one before signing beside it for a while.

        Raises:
            InvalidArgument: secret, overlap.
        """
        if problem := _secret_problem(secret):
            raise invalid_field("secret", problem)
        if not 0 <= overlap_us <= MAX_OVERLAP_US:
            raise invalid_field("overlap", "must be 0 s to 7 days; leave it out for 24 h")
        return replace(
            self,
            secret=secret or _made_up(),
            previous_secret=self.secret if overlap_us else "",
            previous_until_unix_us=now_unix_us + overlap_us,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which notices a subscriber wants.

    Attributes:
        kinds: of these kinds; at least one.
        min_severity: alarms at least so severe; 0 = all.
        twin_type_id: twins of this type; "" = all.
        twin_ids: only these twins; empty = all.
    """

    kinds: tuple[NoticeKind, ...] = (NoticeKind.ALARM,)
    min_severity: int = 0
    twin_type_id: str = ""
    twin_ids: frozenset[str] = frozenset()

    def wants(self, notice: Notice, subscription_id: str) -> bool:
        """Whether a notice is delivered; that its own deliveries fail a subscriber is not told the same way."""
        if notice.kind not in self.kinds or self.twin_type_id not in ("", notice.twin_type_id):
            return False
        if self.twin_ids and notice.twin_id not in self.twin_ids:
            return False
        if notice.alarm is not None:
            return notice.alarm.severity >= self.min_severity and worth_telling(notice.alarm)
        event = notice.event
        return event is None or event.kind is not EventKind.DELIVERY_FAILED or event.mode != subscription_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How deliveries of a subscription went; times 0 = never.

    Attributes:
        pending: waiting, or being tried again.
        dead: given up, kept for a retry by hand.
        delivered: taken by the receiver.
        failed_attempts: attempts that failed, ever.
        given_up: given up, ever.
        last_success_unix_us: when one was last taken.
        last_failure_unix_us: when an attempt last failed.
        last_error: why.
        oldest_pending_unix_us: since when the oldest one waits.
        missed: times that notices had left the journal before they were taken up: told by a warning, and lost.
    """

    pending: int = 0
    dead: int = 0
    delivered: int = 0
    failed_attempts: int = 0
    given_up: int = 0
    last_success_unix_us: int = 0
    last_failure_unix_us: int = 0
    last_error: str = ""
    oldest_pending_unix_us: int = 0
    missed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One subscription.

    Attributes:
        tenant: whose.
        subscription_id: chosen by the caller.
        target: where notices go.
        wanted: which.
        retry_for_us: how long a delivery is tried.
        description: for people.
        created_by: who.
        create_unix_us: when.
        through: up to where notices have been taken up.
        status: how it went.
    """

    tenant: str
    subscription_id: str
    target: Target
    wanted: Wanted
    retry_for_us: int = DEFAULT_RETRY_US
    description: str = ""
    created_by: str = ""
    create_unix_us: int = 0
    through: Position = field(default_factory=lambda: Position(incarnation="", offset=0))
    status: Status = field(default_factory=Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One notice on its way to one subscriber.

    Attributes:
        tenant: whose.
        subscription_id: to whom.
        delivery_id: the same however often it is sent.
        place: its place in the order of the subscription.
        subject: deliveries of one subject go in order.
        twin_id: the twin it is about.
        body: JSON text.
        attempts: so far.
        create_unix_us: since when it waits.
        tells_of_failure: it tells that another delivery failed: should it fail too, that is told no further.
    """

    tenant: str
    subscription_id: str
    delivery_id: str
    place: str
    subject: str
    twin_id: str
    body: str
    attempts: int = 0
    create_unix_us: int = 0
    tells_of_failure: bool = False


def checked(subscription: Subscription) -> Subscription:
    """Return a subscription to be created, a secret made up where none is given; raises `InvalidArgument`."""
    at = "subscription"
    require_resource_id(subscription.subscription_id, f"{at}.subscription_id")
    wanted = subscription.wanted
    if not wanted.kinds or NoticeKind.UNSPECIFIED in wanted.kinds:
        raise invalid_field(f"{at}.kinds", "must hold at least one of ALARM, EVENT and TWIN")
    if not 0 <= wanted.min_severity <= 1_000:
        raise invalid_field(f"{at}.min_severity", "must be 1 to 1,000, or 0 for all")
    if wanted.twin_type_id:
        require_resource_id(wanted.twin_type_id, f"{at}.twin_type_id")
    if len(wanted.twin_ids) > MAX_TWIN_IDS:
        raise invalid_field(f"{at}.twin_ids", f"must hold at most {MAX_TWIN_IDS:,} ids; subscribe by twin type")
    for twin_id in wanted.twin_ids:
        require_twin_id(twin_id, f"{at}.twin_ids")
    if not US_PER_S <= subscription.retry_for_us <= MAX_RETRY_US:
        raise invalid_field(f"{at}.retry_for", "must be 1 s to 7 days; leave it out for 24 h")
    if len(subscription.description.encode()) > MAX_TOPIC_BYTES:
        raise invalid_field(f"{at}.description", f"must be at most {MAX_TOPIC_BYTES} bytes")
    return _with_target(subscription, at)


def _with_target(subscription: Subscription, at: str) -> Subscription:
    target = subscription.target
    for problem in _target_problems(target):
        raise invalid_field(f"{at}.target.{problem[0]}", problem[1])
    return replace(subscription, target=replace(target, secret=target.secret or _made_up()))


def _made_up() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))


def _secret_problem(secret: str) -> str:
    """Return what is wrong with a secret that a caller brings; "" = nothing, or it brings none."""
    if not secret:
        return ""
    try:
        size = len(_key(secret))
    except (binascii.Error, ValueError):
        size = 0
    if secret.startswith(SECRET_PREFIX) and _SECRET_BYTES[0] <= size <= _SECRET_BYTES[1]:
        return ""
    return "must be 'whsec_' and 24 to 64 bytes in base64; leave it out and one is made up"


def _target_problems(target: Target) -> Iterator[tuple[str, str]]:
    try:
        parts = urlsplit(target.url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    readable = target.url.isascii() and target.url.isprintable() and " " not in target.url
    if not (readable and host and parts.scheme in _SCHEMES) or len(target.url) > MAX_URL_CHARACTERS:
        yield "url", "must be https://HOST/PATH for a webhook, or mqtts://HOST:PORT for a broker"
    elif parts.username is not None or parts.password is not None or parts.fragment:
        yield "url", "must hold neither credentials nor a fragment; a webhook is known by its signature"
    elif port == 0:
        yield "url", "must name a port from 1 to 65535"
    elif _SCHEMES[parts.scheme] == "mqtt":
        topic = target.topic
        if not topic or len(topic.encode()) > MAX_TOPIC_BYTES or any(c in topic for c in "+#\0"):
            yield "topic", f"is required for MQTT: at most {MAX_TOPIC_BYTES} bytes, without + and #"
        if parts.path not in ("", "/") or parts.query:
            yield "url", "of a broker ends after its port; give the topic apart"
        if bool(target.password) and not target.username:
            yield "username", "is required with a password"
    elif target.topic or target.username or target.password:
        yield "topic", "topic, username and password are for MQTT"
    if problem := _secret_problem(target.secret):
        yield "secret", problem
