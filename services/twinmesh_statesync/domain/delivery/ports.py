"""What delivery needs from outside: a place that keeps what is on its way, and somebody who carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.delivery.subscriptions import Delivery, Subscription, Target

Rotate = Callable[[Target], Target]


class DeliveryFailedError(Exception):
    """The receiver did not take a delivery; the words are for the operator, without secrets."""


class Carrier(Protocol):
    """Carries deliveries to one kind of target."""

    async def send(self, subscription: Subscription, delivery: Delivery) -> None:
        """Return once the receiver has taken it; raises `DeliveryFailedError`, within a bounded time."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...


class Outbox(Protocol):
    """Keeps subscriptions, and deliveries that were not taken yet; every method may raise `Unavailable`."""

    async def create(self, subscription: Subscription, *, request_id: str) -> Subscription:
        """Keep a new subscription; the same `request_id` again returns the first one.

        Raises:
            AlreadyExists: the id is taken.
            ResourceExhausted: the tenant has as many as it can.
        """
        ...

    async def get(self, tenant: str, subscription_id: str) -> Subscription:
        """Return a subscription, its secrets included; raises `NotFound`."""
        ...

    async def of_tenant(self, tenant: str) -> list[Subscription]:
        """Return the subscriptions of a tenant, by id."""
        ...

    async def delete(self, tenant: str, subscription_id: str) -> None:
        """Forget a subscription and what is on its way to it; raises `NotFound`."""
        ...

    async def rotate(self, tenant: str, subscription_id: str, rotate: Rotate, *, request_id: str) -> Target:
        """Replace a subscription's target by what `rotate` makes of it, and return it.

        The `request_id` of the newest rotation changes nothing and returns what it made; raises `NotFound`.
        """
        ...

    async def revive(self, tenant: str, subscription_id: str, *, now_unix_us: int) -> int:
        """Try again what was given up; returns how many."""
        ...

    async def all(self) -> list[Subscription]:
        """Return the subscriptions of all tenants; their status is not filled in."""
        ...

    async def take_up(
        self, subscription: Subscription, through: Position, deliveries: Sequence[Delivery], *, missed: int = 0
    ) -> bool:
        """Add deliveries and move the cursor, in one transaction; False = somebody else moved it, nothing happened."""
        ...

    async def waiting(self, now_unix_us: int) -> list[tuple[str, str]]:
        """Return (tenant, subscription id) with deliveries that are due."""
        ...

    async def due(self, tenant: str, subscription_id: str, now_unix_us: int, limit: int) -> list[Delivery]:
        """Return the first deliveries of their subjects that are due."""
        ...

    async def delivered(self, delivery: Delivery, now_unix_us: int) -> None:
        """Forget a delivery that was taken."""
        ...

    async def failed(self, delivery: Delivery, error: str, now_unix_us: int, next_unix_us: int | None) -> None:
        """Note a failed attempt, and when the next one is due; None = it is given up."""
        ...

    async def forget(self, tenant: str, twin_id: str, place: str) -> None:
        """Forget what is on its way, or was given up, about an erased twin, from before a place."""
        ...

    async def totals(self) -> tuple[int, int]:
        """Return how many deliveries wait, and how many were given up and are kept."""
        ...
