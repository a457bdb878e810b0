"""Takes up notices for subscriptions, and has them carried until their receivers have them or their time is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import US_PER_S, Clock
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.delivery.notices import Notice, place_of
from twinmesh_statesync.domain.delivery.payload import delivery_of
from twinmesh_statesync.domain.delivery.ports import Carrier, DeliveryFailedError, Outbox
from twinmesh_statesync.domain.delivery.subscriptions import Delivery, Subscription
from twinmesh_statesync.domain.entries import ControlEntry, RecordEvent
from twinmesh_statesync.domain.erasing import is_erasure
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.keeping import Report
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.ports import Log

LOOK_S: Final = 0.5
"""How often subscriptions and due deliveries are looked for when nothing wakes the dispatcher."""
BATCH: Final = 200
AT_ONCE: Final = 8
"""Deliveries of one subscription on their way at the same time, each of another subject."""
MOST_AT_ONCE: Final = 64
"""And of all subscriptions."""
LONGEST_PAUSE_S: Final = 900.0
_KEEP_CURSOR_S: Final = 30.0
_HOUR_US: Final = 3_600 * US_PER_S
_PRINCIPAL: Final = "statesync"


class Dispatcher:
    """Delivers, while `mine` says that this process is the one that does.

    Args:
        live: the fold with its journals.
        outbox: what is on its way.
        carriers: by kind of target.
        log: where an event is written when a delivery is given up.
        clock: the time.
        report: told of what goes wrong.
        mine: whether this process delivers now. Two that both believe so send the same deliveries under the same ids.
        first_pause_s: before the second attempt; doubled each time, with jitter.
        count: told ``delivered``, ``failed`` or ``given_up`` for each attempt.
    """

    def __init__(
        self,
        *,
        live: LiveFold,
        outbox: Outbox,
        carriers: Mapping[str, Carrier],
        log: Log,
        clock: Clock,
        report: Report,
        mine: Callable[[], bool] = lambda: True,
        first_pause_s: float = 1.0,
        count: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._live = live
        self._outbox = outbox
        self._carriers = carriers
        self._log = log
        self._clock = clock
        self._report = report
        self._mine = mine
        self._first_pause_s = first_pause_s
        self._count = count
        self._seen: dict[tuple[str, str], Position] = {}
        self._kept_s: dict[tuple[str, str], float] = {}
        self._busy: set[tuple[str, str]] = set()
        self._crowd = asyncio.Semaphore(MOST_AT_ONCE)
        self._woken = asyncio.Event()
        self._erased: dict[tuple[str, str], int] = {}
        self._generation = -1
        live.listeners.on_loud_changes(self._notice)

    def wake(self) -> None:
        """Look at once: there may be something to tell, or somebody to tell it to."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), LOOK_S)
                self._woken.clear()
                if not self._live.caught_up or not self._mine():
                    continue
                try:
                    await self._take_up_all()
                    await self._forget_erased()
                    for key in await self._outbox.waiting(self._clock.now_unix_us()):
                        if key not in self._busy:
                            self._busy.add(key)
                            group.create_task(self._serve(*key))
                except TwinmeshError as error:
                    self._report("outbox_unavailable", {"reason": str(error.reason)})

    def _notice(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if is_erasure(change):
                self._erased[change.tenant, change.twin.twin_id] = change.offset
            if change.alarms or change.events:
                self.wake()

    async def _forget_erased(self) -> None:
        """Take out of the outbox what is about erased twins: noticed since, or before the start."""
        if self._generation != self._live.generation:
            self._generation = self._live.generation
            fold = self._live.fold
            for tenant in fold.tenants():
                found = ((twin_id, state.erase_offset) for twin_id, state in fold.states(tenant).items())
                self._erased |= {(tenant, twin_id): offset for twin_id, offset in found if offset}
        for (tenant, twin_id), offset in list(self._erased.items()):
            await self._outbox.forget(tenant, twin_id, place_of(offset, 0))
            del self._erased[tenant, twin_id]

    async def _take_up_all(self) -> None:
        subscriptions = await self._outbox.all()
        living = {(s.tenant, s.subscription_id) for s in subscriptions}
        for gone in self._seen.keys() - living:
            del self._seen[gone]
        for subscription in subscriptions:
            newest = subscription
            while await self._take_up(newest):
                newest = await self._outbox.get(newest.tenant, newest.subscription_id)

    async def _take_up(self, subscription: Subscription) -> bool:
        """Take up what one subscription has not been told; returns whether there may be more."""
        key = (subscription.tenant, subscription.subscription_id)
        start, here = self._start(subscription), self._live.position
        if here.incarnation == subscription.through.incarnation and here.offset <= start.offset:
            return False  # nothing new; or this fold has yet to come to where another process was
        journal, wanted = self._live.fold.journals.of(subscription.tenant), subscription.wanted
        missed = int(journal.floor(wanted.kinds) > start.offset)
        notices = journal.after(start.offset, wanted.kinds, BATCH)
        more = len(notices) >= BATCH
        through = Position(incarnation=here.incarnation, offset=notices[-1].offset if more else here.offset)
        deliveries = [self._delivery(n, subscription) for n in notices if wanted.wants(n, subscription.subscription_id)]
        now_s = self._clock.monotonic_s()
        idle = not deliveries and not missed and through.incarnation == subscription.through.incarnation
        if idle and now_s - self._kept_s.get(key, float("-inf")) < _KEEP_CURSOR_S:
            self._seen[key] = through
            return more
        if missed:
            self._report("notices_missed", {"subscription": subscription.subscription_id, "after": start.offset})
        if await self._outbox.take_up(subscription, through, deliveries, missed=missed):
            self._kept_s[key] = now_s
            self._seen[key] = through
        return more

    def _start(self, subscription: Subscription) -> Position:
        """Return the position after which a subscription goes on."""
        kept, here = subscription.through, self._live.position
        seen = self._seen.get((subscription.tenant, subscription.subscription_id), kept)
        if kept.incarnation == here.incarnation:
            return seen if seen.incarnation == here.incarnation and seen.offset > kept.offset else kept
        # The log was restored to an earlier point. What it holds up to where the cursor was has been told, or it was
        # written anew since: then from where the log is now at the latest.
        return Position(incarnation=here.incarnation, offset=min(kept.offset, here.offset))

    def _delivery(self, notice: Notice, subscription: Subscription) -> Delivery:
        return delivery_of(notice, subscription, self._live.incarnation, self._clock.now_unix_us())

    async def _serve(self, tenant: str, subscription_id: str) -> None:
        """Send what is due to one subscriber, until nothing is."""
        try:
            subscription = await self._outbox.get(tenant, subscription_id)
            while self._mine():
                now_unix_us = self._clock.now_unix_us()
                due = await self._outbox.due(tenant, subscription_id, now_unix_us, AT_ONCE)
                if not due:
                    return
                async with asyncio.TaskGroup() as group:
                    for delivery in due:
                        group.create_task(self._send(subscription, delivery))
        except TwinmeshError as error:
            # Deleted meanwhile, or the outbox is away: what is there comes up again.
            self._report("deliveries_interrupted", {"subscription": subscription_id, "reason": str(error.reason)})
        except ExceptionGroup as errors:
            if errors.split(TwinmeshError)[1] is not None:
                raise
            self._report("deliveries_interrupted", {"subscription": subscription_id, "reason": "UNAVAILABLE"})
        finally:
            self._busy.discard((tenant, subscription_id))

    async def _send(self, subscription: Subscription, delivery: Delivery) -> None:
        try:
            async with self._crowd:
                await self._carriers[subscription.target.kind].send(subscription, delivery)
        except DeliveryFailedError as error:
            await self._not_taken(subscription, delivery, str(error))
        else:
            self._count("delivered")
            await self._outbox.delivered(delivery, self._clock.now_unix_us())

    async def _not_taken(self, subscription: Subscription, delivery: Delivery, why: str) -> None:
        now = self._clock.now_unix_us()
        pause_s = min(self._first_pause_s * 2.0 ** min(delivery.attempts, 20), LONGEST_PAUSE_S)
        due = now + int(pause_s * random.uniform(0.5, 1.0) * US_PER_S)  # noqa: S311  only to spread load
        over = due > delivery.create_unix_us + subscription.retry_for_us
        self._count("given_up" if over else "failed")
        if over:
            await self._tell(subscription, delivery, why, now)
        await self._outbox.failed(delivery, why, now, None if over else due)

    async def _tell(self, subscription: Subscription, delivery: Delivery, why: str, now: int) -> None:
        """Write an event that a delivery was given up; at most one an hour for a twin and a subscription."""
        fields = {"subscription": subscription.subscription_id, "delivery": delivery.delivery_id, "why": why}
        self._report("delivery_given_up", fields)
        if delivery.tells_of_failure:
            return
        about = f"{subscription.subscription_id}\0{delivery.twin_id}\0{now // _HOUR_US}"
        digest = blake2b(about.encode(), digest_size=16)
        event = Event(
            event_id=f"delivery-failed-{digest.hexdigest()}",
            twin_id=delivery.twin_id,
            kind=EventKind.DELIVERY_FAILED,
            start_time_unix_us=now,
            mode=subscription.subscription_id,
            message=f"Not delivered to subscription {subscription.subscription_id}, and given up: {why}",
        )
        entry = ControlEntry(
            request_id=f"delivery-{digest.hexdigest()}", principal=_PRINCIPAL, action=RecordEvent(event=event)
        )
        try:
            await self._log.append(delivery.tenant, entry, content_hash=digest.digest())
        except TwinmeshError as error:
            self._report("event_not_written", {"event": event.event_id, "reason": str(error.reason)})
