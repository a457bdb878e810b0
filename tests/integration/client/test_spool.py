"""Whatever a producer was told is spooled is stored once and in order, though it is killed again and again."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tests.integration.client.log_values import values_of

import twinmesh_client as tm
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_local.errors import LocalMeshError

pytestmark = [pytest.mark.timeout(300), pytest.mark.faults]

PRODUCER = Path(__file__).with_name("spool_producer.py")
EXAMPLE = Path(__file__).parents[3] / "examples" / "gateway.py"
NOWHERE = "127.0.0.1:1"
LIFE = 1_000_000
"""Numbers of one life of the producer begin at a multiple of this."""
TYPE = tm.twin_type("spool-counter@1", [tm.channel("n")])


async def numbers_of(mesh, twin_id: str) -> list[int]:
    return [int(value) for value in (await values_of(mesh, twin_id)).get("n", [])]


def check(told: dict[int, int], stored: list[int]) -> None:
    """Raise unless each life's numbers stand there once, from its first on without a gap, and as far as it was told."""
    assert stored == sorted(stored), "out of order"
    assert len(stored) == len(set(stored)), "stored twice"
    for life, last in told.items():
        ours = [number for number in stored if number // LIFE == life]
        assert ours == list(range(life * LIFE, life * LIFE + len(ours))), f"life {life} has a gap"
        assert last < life * LIFE or (ours and ours[-1] >= last), f"life {life} was told {last}, stored are {ours[-3:]}"


def live(target: str, directory: Path, twin: str, life: int, seconds: float, *options: str) -> int:
    """Run the producer and kill it that long after it has opened its spool; returns the last number it was told."""
    command = [sys.executable, str(PRODUCER), target, str(directory), twin, str(life * LIFE), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as producer:
        assert producer.stdout is not None
        assert producer.stderr is not None
        assert producer.stdout.readline() == "open\n", producer.stderr.read()
        try:
            producer.wait(seconds)
        except subprocess.TimeoutExpired:
            producer.send_signal(signal.SIGKILL)
        said, wrong = producer.communicate()
    assert producer.returncode == -signal.SIGKILL, wrong
    # The last line may be cut short by the kill.
    lines = said.rpartition("\n")[0].splitlines()
    return int(lines[-1].split()[1]) if lines else life * LIFE - 1


async def kills(mesh, target, directory, twin_id, *, lives: int, seed: int, options=(), between=None) -> None:
    """Live and die many times, with the mesh there or away, then send the rest and check."""
    dice = random.Random(seed)  # noqa: S311
    await mesh.types.create(TYPE)
    await mesh.twins.create(twin_id, type="spool-counter@1")
    async with open_writer_async("spool-test", target=target) as bare:
        before = await bare.resumed()
    told: dict[int, int] = {}
    for life in range(1, lives + 1):
        where = NOWHERE if life % 4 == 2 else target
        seconds = dice.choice((0.0, 0.02, 0.1, 0.25, 0.5)) * dice.random() * 2
        if life == lives:
            # The last one gets to where it sends something malformed, also on a busy machine.
            where, seconds = target, 2.0
        told[life] = await asyncio.to_thread(live, where, directory, twin_id, life, seconds, *options)
        if between is not None:
            await between(life)
    assert sum(last >= life * LIFE for life, last in told.items()) >= max(1, lives // 5), (
        "killed before it did anything"
    )
    async with open_writer_async("spool-test", target=target, spool=directory) as writer:
        async with asyncio.timeout(60):
            ack = await writer.flush()
        assert writer.spool_damaged == 0
        assert ack.quarantined == 0
        if "--poison" in options:
            await check_refused(writer)
    if "--poison" in options:
        async with open_writer_async("spool-test", target=target) as bare:
            assert await bare.resumed() == before + writer.durable - writer.refused_count
    check(told, await numbers_of(mesh, twin_id))


async def check_refused(writer) -> None:
    """Raise unless every malformed batch is kept once, and no other."""
    kept = await writer.refused_batches()
    numbers = [observation_pb2.ObservationBatch.FromString(r.columns).doubles.value[0] for r in kept]
    assert numbers == sorted(set(numbers))
    assert len(kept) == writer.refused_count == writer.refused_points > 0
    assert {r.error.reason for r in kept} == {"UNEQUAL_COLUMNS"}
    assert [r.number for r in kept] == sorted({r.number for r in kept})


async def test_nothing_told_is_lost_or_stored_twice_when_the_producer_is_killed(mesh, target, tmp_path):
    await kills(mesh, target, tmp_path / "spool", "spool-short", lives=5, seed=5)


@pytest.mark.slow
async def test_refused_batches_are_kept_once_and_stop_nobody_when_the_producer_is_killed(mesh, target, tmp_path):
    await kills(mesh, target, tmp_path / "spool", "spool-poison", lives=3, seed=5, options=("--poison",))


async def test_a_producer_that_tells_before_it_writes_is_caught(mesh, target, tmp_path):
    with pytest.raises(AssertionError, match="was told"):
        await kills(mesh, target, tmp_path / "spool", "spool-canary", lives=3, seed=1, options=("--tells-too-early",))


@pytest.mark.slow
async def test_nothing_is_lost_while_producer_and_services_are_killed(running_mesh, mesh, target, tmp_path):
    async def kill_a_service(life: int) -> None:
        if life % 3 == 0:
            # One that is away since the last kill is started again after a pause, and cannot be killed now.
            with suppress(LocalMeshError):
                running_mesh.kill("storage" if life % 2 else "ingestion", signal.SIGKILL)

    options = ("--poison",)
    await kills(
        mesh, target, tmp_path / "spool", "spool-long", lives=40, seed=7, options=options, between=kill_a_service
    )


async def test_the_example_loses_nothing_without_a_mesh(mesh, target, tmp_path):
    await mesh.types.create(tm.twin_type("gateway@1", [tm.channel("temperature", "Cel")]))
    twin = await mesh.twins.create("gateway-example", type="gateway@1")
    for where in (NOWHERE, target):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, EXAMPLE, tmp_path / "spool"],
            env={**os.environ, "TWINMESH_TARGET": where},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ("the mesh is away" in done.stdout) == (where == NOWHERE)
    head = await mesh.head()
    stored = await twin.read("temperature", last="1h", min_offset=head)
    assert len(stored["temperature"].values) == 400


@pytest.mark.slow
async def test_a_long_absence_fits_on_disk_and_is_sent_in_order(mesh, target, tmp_path):
    await mesh.types.create(TYPE)
    twin = await mesh.twins.create("spool-absence", type="spool-counter@1")
    start = 1_700_000_000_000_000
    async with open_writer_async("absence", target=NOWHERE, spool=tmp_path / "spool") as writer:
        for i in range(40):
            values = np.arange(i * 50_000, (i + 1) * 50_000)
            await writer.observe_many(twin.twin_id, "n", start + values, values.astype(np.float64))
        await writer.sync()
        assert len(list((tmp_path / "spool").glob("*.spool"))) > 2
    async with open_writer_async("absence", target=target, spool=tmp_path / "spool") as writer:
        async with asyncio.timeout(120):
            await writer.flush()
    assert await numbers_of(mesh, twin.twin_id) == list(range(2_000_000))
