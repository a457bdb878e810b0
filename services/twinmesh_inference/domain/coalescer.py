"""Calls that arrive together travel together, and every caller gets exactly its own rows.

Laws (each a test): one call in flight per model version; a call is sent at once when its version is idle; a batch never
holds more rows than the model takes; rows whose caller went away or ran out of time are dropped before sending; a row
that makes the graph fail takes no neighbour with it; queued rows are bounded, and beyond the bound callers are told
when to come back.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from twinmesh_core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)
from twinmesh_core.time import Clock
from twinmesh_inference.domain.models import Endpoint
from twinmesh_inference.domain.ports import Executor

_SPLIT_ON: Final = (InvalidArgument, Internal)
_MIN_RETRY_S: Final = 0.02
_MAX_RETRY_S: Final = 5.0


@dataclass(slots=True, eq=False)
class _Call:
    """One caller's rows, waiting for their answer."""

    rows: int
    inputs: Sequence[bytes]
    deadline_s: float
    answer: asyncio.Future[memoryview]


@dataclass(slots=True, eq=False)
class _Line:
    """The calls waiting for one model version."""

    calls: deque[_Call] = field(default_factory=deque)
    last_batch_s: float = 0.01


class Coalescer:
    """Packs concurrent calls for one model version into batches.

    `run` must be running while calls are submitted: it owns the tasks that send batches.

    Args:
        executor: runs the batches.
        clock: its monotonic side orders deadlines.
        max_queued_rows: most rows waiting or in flight, over all models.
        max_batch_bytes: largest input of one call to the executor.
        infer_timeout_s: longest one call to the executor may take, however patient its callers are.
        on_batch: told the rows and seconds of each batch that was answered, for metrics.
    """

    def __init__(
        self,
        executor: Executor,
        clock: Clock,
        *,
        max_queued_rows: int = 16_384,
        max_batch_bytes: int = 4 * 1024 * 1024,
        infer_timeout_s: float = 30.0,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._max_queued_rows = max_queued_rows
        self._max_batch_bytes = max_batch_bytes
        self._infer_timeout_s = infer_timeout_s
        self._on_batch = on_batch
        self._lines: dict[Endpoint, _Line] = {}
        self._group: asyncio.TaskGroup | None = None
        self._rows = 0

    @property
    def queued_rows(self) -> int:
        """Rows waiting or in flight now."""
        return self._rows

    def max_rows(self, endpoint: Endpoint) -> int:
        """Return the most rows that one `submit` for this version may carry."""
        return endpoint.rows_within(self._max_batch_bytes)

    async def run(self) -> None:
        """Send batches until cancelled; callers still waiting then are told to go elsewhere."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await asyncio.Event().wait()
        finally:
            self._group = None
            for line in self._lines.values():
                _fail(line.calls, _draining())
            self._lines.clear()

    async def submit(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes], *, timeout_s: float) -> memoryview:
        """Return the output bytes of exactly these rows.

        Args:
            endpoint: the model version.
            rows: number of rows, at most `max_rows`.
            inputs: bytes of each input tensor in the endpoint's order, float32, row-major.
            timeout_s: when to give up.

        Raises:
            ResourceExhausted: too many rows are waiting; with the time after which to come back.
            DeadlineExceeded: no answer within `timeout_s`.
            InvalidArgument: these rows cannot be a batch of this model.
            TwinmeshError: whatever the executor answered.
        """
        self._admit(endpoint, rows, inputs)
        if self._group is None:
            raise _draining()
        call = _Call(rows, inputs, self._clock.monotonic_s() + timeout_s, asyncio.get_running_loop().create_future())
        line = self._lines.get(endpoint)
        self._rows += rows
        if line is None:
            # The task starts after the callers that are ready now: they share its first batch, and nobody waits.
            line = self._lines[endpoint] = _Line()
            line.calls.append(call)
            self._group.create_task(self._drain(endpoint, line))
        else:
            line.calls.append(call)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.answer
        except TimeoutError:
            raise _late() from None

    def _admit(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes]) -> None:
        if not 1 <= rows <= self.max_rows(endpoint):
            raise InvalidArgument(f"A call carries 1 to {self.max_rows(endpoint)} rows of this model, not {rows}.")
        if len(inputs) != len(endpoint.inputs):
            raise InvalidArgument(f"The model takes {len(endpoint.inputs)} tensors, not {len(inputs)}.")
        for spec, tensor in zip(endpoint.inputs, inputs, strict=True):
            if len(tensor) != rows * spec.row_bytes:
                raise InvalidArgument(
                    f"The tensor {spec.name} has {len(tensor)} bytes; {rows} rows need {rows * spec.row_bytes}."
                )
        if self._rows + rows > self._max_queued_rows:
            raise ResourceExhausted(
                f"{self._rows} rows are waiting for models and {self._max_queued_rows} may; come back later.",
                reason=Reason.OVERLOADED,
                metadata={"queued_rows": str(self._rows), "limit_rows": str(self._max_queued_rows)},
                retry_after_s=self._retry_after_s(endpoint),
            )

    def _retry_after_s(self, endpoint: Endpoint) -> float:
        line = self._lines.get(endpoint)
        if line is None:
            return _MIN_RETRY_S
        batches = 1 + sum(call.rows for call in line.calls) / self.max_rows(endpoint)
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, batches * line.last_batch_s))

    async def _drain(self, endpoint: Endpoint, line: _Line) -> None:
        try:
            while batch := self._next_batch(endpoint, line):
                started_s = self._clock.monotonic_s()
                try:
                    await self._execute(endpoint, batch)
                finally:
                    self._rows -= sum(call.rows for call in batch)
                    _fail(batch, _draining())
                line.last_batch_s = self._clock.monotonic_s() - started_s
        finally:
            if self._lines.get(endpoint) is line:
                del self._lines[endpoint]
            self._rows -= sum(call.rows for call in line.calls)
            _fail(line.calls, _draining())

    def _next_batch(self, endpoint: Endpoint, line: _Line) -> list[_Call]:
        batch: list[_Call] = []
        room = self.max_rows(endpoint)
        now_s = self._clock.monotonic_s()
        while line.calls:
            call = line.calls[0]
            wanted = _still_wanted((call,), now_s)
            if wanted and call.rows > room:
                break
            line.calls.popleft()
            if wanted:
                batch.append(call)
                room -= call.rows
            else:
                self._rows -= call.rows
        return batch

    async def _execute(self, endpoint: Endpoint, batch: list[_Call]) -> None:
        parts = [batch]
        while parts:
            now_s = self._clock.monotonic_s()
            part = _still_wanted(parts.pop(), now_s)
            if not part:
                continue
            rows = sum(call.rows for call in part)
            patience_s = min(self._infer_timeout_s, max(call.deadline_s for call in part) - now_s)
            try:
                answer = await self._executor.infer(endpoint, rows, _joined(part), timeout_s=patience_s)
                _deliver(endpoint, part, rows, answer)
                self._on_batch(rows, self._clock.monotonic_s() - now_s)
            except _SPLIT_ON as error:
                if len(part) == 1:
                    _fail(part, error)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            except TwinmeshError as error:
                _fail(part, error)
            except Exception as error:  # noqa: BLE001  it is raised to the callers, whose interceptor logs it whole
                _fail(part, error)


def _joined(part: list[_Call]) -> Sequence[bytes]:
    if len(part) == 1:
        return part[0].inputs
    return [b"".join(tensors) for tensors in zip(*(call.inputs for call in part), strict=True)]


def _deliver(endpoint: Endpoint, part: list[_Call], rows: int, answer: bytes) -> None:
    row_bytes = endpoint.output.row_bytes
    if len(answer) != rows * row_bytes:
        # Rows cannot be told apart: better nobody's answer than somebody else's.
        raise Unavailable("The model server answered with another number of rows than it was asked for.")
    view, start = memoryview(answer), 0
    for call in part:
        end = start + call.rows * row_bytes
        if not call.answer.done():
            call.answer.set_result(view[start:end])
        start = end


def _still_wanted(calls: Sequence[_Call], now_s: float) -> list[_Call]:
    """Return the calls whose callers wait, and tell those whose time is over."""
    _fail([call for call in calls if call.deadline_s <= now_s], _late())
    return [call for call in calls if not call.answer.done()]


def _fail(calls: Sequence[_Call] | deque[_Call], error: Exception) -> None:
    for call in calls:
        if not call.answer.done():
            # Each caller raises its own copy: one exception raised in many tasks would gather all their tracebacks.
            call.answer.set_exception(copy.copy(error))


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The model did not answer within the time allowed for the call.", metadata={"waiting_for": "triton"}
    )


def _draining() -> Unavailable:
    return Unavailable("This server is stopping; call again and another one answers.", reason=Reason.DRAINING)
