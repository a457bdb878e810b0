"""A connector is kept running through failures of its source, and its end loses nothing that it read."""

import asyncio

import pytest

from twinmesh_client import FailedPrecondition, InvalidArgument
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_connectors.connector import SourceError
from twinmesh_connectors.host import batch_of
from twinmesh_connectors.runner import Runner
from twinmesh_connectors.status import State, Status
from twinmesh_core.errors import Reason

BATCH = batch_of("t", {"a": 1.0}, 1)


class Scripted:
    """Writes one batch a run and then does what its script says; ends when the script has ended."""

    name = "scripted"

    def __init__(self, *script):
        self.script = list(script)
        self.closed = 0
        self.wrote = asyncio.Event()

    async def run(self, writer, status):
        try:
            await writer.write(BATCH)
            status.rows_read += 1
            self.wrote.set()
            step = self.script.pop(0) if self.script else None
            if isinstance(step, Exception):
                raise step
            if step == "hang":
                await asyncio.sleep(60)
        finally:
            self.closed += 1


@pytest.fixture
def runner(fake):
    def build(connector, **options):
        def open_session(on_ack):
            return open_writer_async("p", target=fake.target, on_ack=on_ack)

        return Runner(connector, open_session, first_pause_s=0.01, longest_pause_s=0.02, **options)

    return build


async def test_a_source_that_fails_is_opened_again_in_the_same_session(runner, fake):
    said: list[str] = []
    source = Scripted(SourceError("broker away"), ZeroDivisionError("odd"), OSError("reset"))
    run = runner(source, say=said.append)
    await run.run()
    assert (run.status.state, run.status.restarts, source.closed) == (State.STOPPED, 3, 4)
    assert fake.ingestion.producers["p"].points == dict.fromkeys(range(1, 5), 1)
    assert (run.status.rows_durable, fake.ingestion.sessions) == (4, 1)
    assert "broker away" in said[0]
    assert "ZeroDivisionError: odd" in said[1]


async def test_a_stop_closes_the_source_and_delivers_what_was_read(runner, fake):
    source = Scripted("hang")
    run = runner(source)
    task = asyncio.create_task(run.run())
    await source.wrote.wait()
    run.stop()
    await task
    assert (run.status.state, source.closed, run.status.rows_durable) == (State.STOPPED, 1, 1)


async def test_what_can_never_work_is_not_tried_again(runner):
    run = runner(Scripted(InvalidArgument("channel x: no such column")))
    with pytest.raises(InvalidArgument):
        await run.run()
    assert (run.status.state, run.status.restarts) == (State.FAILED, 0)
    assert "no such column" in run.status.line()


async def test_a_session_that_ended_for_good_ends_the_connector(runner, fake):
    fake.ingestion.fault = lambda _: FailedPrecondition("a newer session", reason=Reason.PRODUCER_FENCED)
    run = runner(Scripted(*[SourceError("again")] * 100))
    with pytest.raises(FailedPrecondition):
        await run.run()
    assert run.status.state is State.FAILED


async def test_a_stop_with_the_mesh_away_says_what_is_lost(runner, fake):
    said: list[str] = []
    source = Scripted("hang")
    run = runner(source, say=said.append, grace_s=0.05)
    fake.ingestion.hold.clear()
    task = asyncio.create_task(run.run())
    await source.wrote.wait()
    run.stop()
    await task
    fake.ingestion.hold.set()
    assert "is lost" in said[0]


def test_the_line_tells_everything_that_happened():
    times = iter([0.0, 10.0])
    status = Status(name="roof", state=State.RUNNING, clock=lambda: next(times))
    status.rows_read = 1_000
    status.rows_durable = 900
    status.drop("not JSON", 3)
    status.drop("not JSON")
    status.last_error = "broker away"
    assert status.line() == (
        "roof: running  10 s  read 1,000 (100.0/s)  durable 900  dropped 4 not JSON  last error: broker away"
    )
    assert status.document()["rows_dropped"] == {"not JSON": 4}
