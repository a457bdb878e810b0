"""The connector: variables of one OPC UA server become observations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.client.client import Client
from asyncua.common.node import Node
from asyncua.common.subscription import DataChangeEvent, OverflowPolicy, StatusChangeEvent, Subscription
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.uaerrors import UaError

from twinmesh_client.aio.writer import Writer
from twinmesh_connectors.connector import SourceError
from twinmesh_connectors.opcua.values import Item, overflowed, reading_of
from twinmesh_connectors.readings import Reading, Unreadable, batches, channel_name
from twinmesh_connectors.status import Status
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.units import canonical

REQUEST_TIMEOUT_S: Final = 8.0
MAX_ITEMS: Final = 20_000
BATCH_READINGS: Final = 10_000
QUEUE_EVENTS: Final = 100_000
GATHER_S: Final = 0.05
ALIVE_EVERY_S: Final = 5.0
_HISTORY_PAGE: Final = 5_000
_MAX_DEPTH: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is, and who we are to it.

    Attributes:
        publishing_ms: how often the server sends what it has gathered.
        security: ``Policy,Mode,certificate,key[,server certificate]``; empty = none.
        history_s: how far back the server's own history is read after an interruption; 0 = not at all.
    """

    url: str
    username: str = ""
    password: str = ""
    security: str = ""
    publishing_ms: float = 500.0
    history_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """An object whose variables, at any depth, are channels of one twin."""

    node: str
    twin_id: str
    sampling_ms: float = 500.0
    queue: int = 100


class OpcUaConnector:
    """Subscribes to variables, and reads the server's history for what it missed.

    Args:
        name: in status lines.
        server: where to connect.
        items: variables, one by one.
        objects: objects, all of whose variables are wanted.
    """

    def __init__(
        self, name: str, server: Server, *, items: Sequence[Item] = (), objects: Sequence[Object] = ()
    ) -> None:
        self._name = name
        self._server = server
        self._items = tuple(items)
        self._objects = tuple(objects)
        self._last: dict[str, Reading] = {}

    @property
    def name(self) -> str:
        """Name in status lines."""
        return self._name

    async def run(self, writer: Writer, status: Status) -> None:
        """Read the server until the connection ends."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        async with self._connected(lost) as client:
            items = await self._wanted(client, status)
            # Before anything new is heard: history is read from where we were cut off.
            heard = {node: last.time_unix_us for node, last in self._last.items()}
            async with await self._subscribed(client, lost) as subscription:
                missing = await _monitor(client, subscription, items)
                for node, why in missing.items():
                    status.drop(f"node refused: {why}")
                    status.note = f"{node}: {why}"
                if len(missing) == len(items):
                    raise SourceError(f"server {self._server.url} has none of the nodes: {status.note}")
                async with _ending_together() as group:
                    # Side by side: the history of many variables takes longer than events can be held back.
                    group.create_task(self._read_history(client, items, heard, writer, status))
                    group.create_task(
                        self._pump(client, subscription, {i.node: i for i in items}, lost, writer, status)
                    )

    # --- connecting ---

    @asynccontextmanager
    async def _connected(self, lost: asyncio.Future[str]) -> AsyncIterator[Client]:
        server = self._server
        client = Client(server.url, timeout=REQUEST_TIMEOUT_S)
        client.name = client.description = "Twinmesh"

        async def on_lost(error: Exception) -> None:
            _settle(lost, f"server {server.url} went away: {_words(error)}")

        client.connection_lost_callback = on_lost
        if server.username:
            client.set_user(server.username)
            client.set_password(server.password)
        try:
            async with asyncio.timeout(3 * REQUEST_TIMEOUT_S):
                if server.security:
                    await client.set_security_string(server.security)
                await client.connect()
        except (UaError, OSError, TimeoutError, ValueError) as error:
            with suppress(Exception):
                client.disconnect_socket()
            raise SourceError(f"server {server.url} cannot be reached: {_words(error)}") from None
        try:
            yield client
        except (UaError, OSError, TimeoutError) as error:
            raise SourceError(f"server {server.url} failed: {_words(error)}") from None
        finally:
            with suppress(Exception):
                async with asyncio.timeout(REQUEST_TIMEOUT_S / 2):
                    await client.disconnect()

    async def _subscribed(self, client: Client, lost: asyncio.Future[str]) -> Subscription:
        subscription = await client.create_subscription(
            self._server.publishing_ms, queue_maxsize=QUEUE_EVENTS, overflow=OverflowPolicy.DISCONNECT
        )
        subscription.set_overflow_disconnect_handler(
            lambda: _settle(lost, f"server {self._server.url} is faster than the mesh takes")
        )
        return subscription

    async def _wanted(self, client: Client, status: Status) -> list[Item]:
        """Return the variables to monitor, each with its unit: as configured, else as the server says it.

        A variable, and a channel of a twin, is wanted once; what is configured by itself comes before objects.
        """
        items = {item.node: item for item in self._items}
        taken = {(item.twin_id, item.channel) for item in self._items}
        for thing in self._objects:
            async for node, path in _variables(client.get_node(thing.node)):
                name, channel = node.nodeid.to_string(), channel_name("_".join(path))
                if name in items:
                    continue
                if (thing.twin_id, channel) in taken:
                    status.drop("name taken by another variable")
                    status.note = f"{name} would be {channel} too; give it a channel of its own under nodes"
                    continue
                taken.add((thing.twin_id, channel))
                items[name] = Item(
                    node=name,
                    twin_id=thing.twin_id,
                    channel=channel,
                    sampling_ms=thing.sampling_ms,
                    queue=thing.queue,
                )
                if len(items) > MAX_ITEMS:
                    raise SourceError(f"more than {MAX_ITEMS} variables; name fewer objects")
        with_units = []
        for item in items.values():
            unit = item.unit or await _engineering_unit(client.get_node(item.node), status)
            with_units.append(replace(item, unit=unit))
        return with_units

    # --- reading ---

    async def _pump(
        self,
        client: Client,
        subscription: Subscription,
        items: dict[str, Item],
        lost: asyncio.Future[str],
        writer: Writer,
        status: Status,
    ) -> None:
        while True:
            events = await _gathered(subscription, lost)
            readings = list(self._readings(events, items, status))
            if readings:
                for batch in batches(readings):
                    await writer.write(batch)
                status.rows_read += len(readings)
            elif not events:
                # Nothing changed, or nobody is there: a subscription alone would not tell for a long time.
                await client.get_node(ObjectIds.Server_ServerStatus_State).read_value()
            if lost.done():
                raise SourceError(lost.result())

    def _readings(self, events: Sequence[Any], items: dict[str, Item], status: Status) -> Iterator[Reading]:
        arrived = time.time_ns() // 1_000
        for event in events:
            if isinstance(event, StatusChangeEvent):
                raise SourceError(f"server {self._server.url} ended the subscription: {event.notification.Status.name}")
            if isinstance(event, DataChangeEvent):
                item = items[event.node.nodeid.to_string()]
                reading = _understood(item, event.data.monitored_item.Value, arrived, self._last.get(item.node), status)
                if reading is not None:
                    self._last[item.node] = reading
                    yield reading

    async def _read_history(
        self, client: Client, items: Sequence[Item], heard: Mapping[str, int], writer: Writer, status: Status
    ) -> None:
        """Write what the server recorded since we last heard of each variable; what is written twice counts once.

        Args:
            heard: event time by node, microseconds, up to which we have heard.
        """
        if not self._server.history_s:
            return
        now = datetime.now(UTC)
        oldest = now - timedelta(seconds=self._server.history_s)
        for item in items:
            start = max(oldest, _moment(heard[item.node])) if item.node in heard else oldest
            last: Reading | None = None
            while True:
                try:
                    values = await client.get_node(item.node).read_raw_history(start, now, _HISTORY_PAGE, False)
                except UaError as error:
                    status.note = f"no history of {item.node}: {_words(error)}"
                    break
                arrived = time.time_ns() // 1_000
                readings = []
                for value in values:
                    reading = _understood(item, value, arrived, last, status)
                    if reading is not None:
                        last = reading
                        readings.append(reading)
                for batch in batches(readings):
                    await writer.write(batch)
                status.rows_read += len(readings)
                if len(values) < _HISTORY_PAGE or last is None:
                    break
                # A page of one single time must not be asked for for ever.
                start = max(_moment(last.time_unix_us), start + timedelta(microseconds=1))


@asynccontextmanager
async def _ending_together() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks side by side; the first failure ends them all and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _understood(
    item: Item, value: ua.DataValue, arrived_unix_us: int, last: Reading | None, status: Status
) -> Reading | None:
    """Return a data value as a reading; None = it cannot be one, which is counted."""
    if value.StatusCode is not None and overflowed(int(value.StatusCode.value)):
        status.drop("by the server: its queue was too short")
    try:
        return reading_of(item, value, arrived_unix_us, last)
    except Unreadable as error:
        status.drop(error.reason)
        status.note = f"last unreadable: {item.node} ({error.reason})"
        return None


def _moment(time_unix_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_unix_us)


async def _gathered(subscription: Subscription, lost: asyncio.Future[str]) -> list[Any]:
    """Return the events of the next moment; none when nothing came for a while or the connection was lost."""
    waiting = asyncio.ensure_future(subscription.next_event(ALIVE_EVERY_S))
    try:
        both: set[asyncio.Future[Any]] = {waiting, lost}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return []
        first = waiting.result()
    except StopAsyncIteration:
        return []
    finally:
        waiting.cancel()
    events = [first] if first is not None else []
    deadline = asyncio.get_running_loop().time() + GATHER_S
    while events and len(events) < BATCH_READINGS:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            break
        try:
            event = await subscription.next_event(left)
        except StopAsyncIteration:
            break
        if event is None:
            break
        events.append(event)
    return events


async def _monitor(client: Client, subscription: Subscription, items: Sequence[Item]) -> dict[str, str]:
    """Monitor the items; returns those that the server refuses, and why."""
    refused: dict[str, str] = {}
    groups: dict[tuple[float, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.sampling_ms, item.queue), []).append(item)
    for (sampling_ms, queue), group in groups.items():
        nodes = [client.get_node(item.node) for item in group]
        results = await subscription.subscribe_data_change(
            nodes, queuesize=queue, sampling_interval=ua.Double(sampling_ms)
        )
        for item, result in zip(group, results, strict=True):
            if isinstance(result, ua.StatusCode):
                refused[item.node] = result.name
    return refused


async def _variables(node: Node, path: tuple[str, ...] = ()) -> AsyncIterator[tuple[Node, tuple[str, ...]]]:
    """Yield the variables below an object with the names that lead to them; properties are not among them."""
    for child in await node.get_children(refs=ObjectIds.HierarchicalReferences):
        kind = await child.read_node_class()
        name = (await child.read_browse_name()).Name or ""
        if kind == ua.NodeClass.Variable:
            if await child.read_type_definition() != ua.NodeId(ua.Int32(ObjectIds.PropertyType)):
                yield child, (*path, name)
        elif kind == ua.NodeClass.Object and len(path) < _MAX_DEPTH:
            async for found in _variables(child, (*path, name)):
                yield found


async def _engineering_unit(node: Node, status: Status) -> str:
    """Return the unit that the server states, as far as it is one that we know; empty otherwise."""
    try:
        stated = await (await node.get_child("0:EngineeringUnits")).read_value()
        text = stated.DisplayName.Text or ""
    except (UaError, AttributeError):
        return ""
    try:
        return canonical(text) if text else ""
    except TwinmeshError:
        status.note = f"the server's unit {text!r} is not known; taken to be the channel's own"
        return ""


def _settle(future: asyncio.Future[str], text: str) -> None:
    if not future.done():
        future.set_result(text)


def _words(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def certificate_paths(security: str) -> list[Path]:
    """Return the files that a security string names."""
    return [Path(part) for part in security.split(",")[2:]]
