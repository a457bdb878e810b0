"""A service as a process: help, bad settings, start, metrics, signals and exit codes, each in a process of its own."""

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.runtime.echo import EchoStub, text

from twinmesh_client.transport import call, open_channel, stream
from twinmesh_core.errors import TwinmeshError

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
from dataclasses import dataclass
from twinmesh_core.errors import Unavailable
from twinmesh_runtime.service import run
from twinmesh_runtime.settings import ServiceSettings, setting
from tests.unit.runtime.echo import echo_service, text

@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    fault: str = setting("", help="What goes wrong.")

async def compose(settings, stack):
    stack.callback(lambda: print("closed", file=sys.stderr))
    if settings.fault == "compose":
        raise Unavailable("The database did not answer.")
    if settings.fault == "compose_hangs":
        await asyncio.sleep(60)
    ended = asyncio.Event()

    async def background():
        if settings.fault == "background":
            await asyncio.sleep(0.2)
            raise RuntimeError("the sequencer fell over")
        try:
            await asyncio.sleep(600)
        finally:
            print("background ended", file=sys.stderr)

    async def count(request, context):
        yield text("1")
        await ended.wait()
        yield text("resume")

    async def slow(request, context):
        await asyncio.sleep(float(request.value))
        return request

    async def drain():
        print("drain", file=sys.stderr)
        ended.set()

    return echo_service(say=slow, count=count, background=(background,), drain=drain)

run("echo", Settings, compose)
"""


class Running:
    """A service process and what it has written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, word: str) -> str:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line.rstrip())
                if word in line:
                    return line
        raise AssertionError(f"{word!r} never came: {self.lines}")

    async def port(self) -> int:
        return int((await self.until(" serving ")).split("port=")[1].split()[0])

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            _, rest = await self.process.communicate()
        self.lines += rest.decode().splitlines()
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@asynccontextmanager
async def service(*arguments: str, **environ: str) -> AsyncIterator[Running]:
    variables = {f"TWINMESH_ECHO_{name.upper()}": value for name, value in environ.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Running(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_help_explains_every_setting() -> None:
    async with service("--help") as running:
        out, _ = await running.process.communicate()
        assert running.process.returncode == 0
        assert b"TWINMESH_ECHO_DRAIN_GRACE_S" in out
        assert b"What goes wrong." in out
        assert b"python -m twinmesh_echo" in out


async def test_a_bad_setting_ends_with_2_and_a_sentence() -> None:
    async with service(port="many", host="0.0.0.0") as running:  # noqa: S104
        assert await running.ended() == 2
        assert "TWINMESH_ECHO_PORT: 'many' cannot be used; it must be a whole number" in running.text
        assert "--help" in running.text
        assert "Traceback" not in running.text
    async with service(host="0.0.0.0") as running:  # noqa: S104
        assert await running.ended() == 2
        assert "TWINMESH_ECHO_ALLOW_INSECURE_BIND" in running.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_with_0(number: signal.Signals) -> None:
    async with service() as running:
        async with open_channel(f"127.0.0.1:{await running.port()}") as channel:
            await running.until(" ready")
            stub = EchoStub(channel)
            watch = stream(stub.count, text(""), timeout_s=None)
            assert (await anext(watch)).value == "1"
            in_flight = asyncio.create_task(call(stub.say, text("0.6"), timeout_s=5))
            await asyncio.sleep(0.1)
            running.process.send_signal(number)
            assert (await anext(watch)).value == "resume"
            assert (await in_flight).value == "0.6"
        assert await running.ended() == 0
        order = [running.text.index(word) for word in ("draining", "drain\n", "background ended", "closed")]
        assert order == sorted(order)
        assert "rpc method=EchoService/Say code=OK" in running.text


async def test_a_second_signal_ends_at_once() -> None:
    async with service(drain_grace_s="60") as running, open_channel(f"127.0.0.1:{await running.port()}") as channel:
        await running.until(" ready")
        in_flight = asyncio.create_task(call(EchoStub(channel).say, text("50"), timeout_s=55))
        await asyncio.sleep(0.1)
        running.process.send_signal(signal.SIGTERM)
        await running.until("draining")
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 128 + signal.SIGTERM
        with pytest.raises(TwinmeshError):
            await in_flight


async def test_a_signal_while_starting_ends_cleanly() -> None:
    async with service(fault="compose_hangs") as running:
        await running.until("starting")
        await asyncio.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
        assert "stopped_while_starting" in running.text
        assert "closed" in running.text


async def test_a_background_task_that_fails_ends_the_process() -> None:
    async with service(fault="background") as running:
        assert await running.ended() == 1
        assert "the sequencer fell over" in running.text
        assert "closed" in running.text


async def test_a_start_that_fails_is_a_sentence_and_1() -> None:
    async with service(fault="compose") as running:
        assert await running.ended() == 1
        assert "The database did not answer." in running.text
        assert "Traceback" not in running.text


async def test_a_taken_port_is_a_sentence_and_1() -> None:
    async with service() as first:
        port = await first.port()
        async with service(port=str(port)) as second:
            assert await second.ended() == 1
            assert f"127.0.0.1:{port} is taken" in second.text
            assert "Traceback" not in second.text


async def test_metrics_are_scraped(unused_tcp_port: int) -> None:
    async with service(metrics_port=str(unused_tcp_port), log_format="json") as running:
        port = int((await running.until('"serving"')).split('"port": ')[1].split("}")[0])
        await running.until('"ready"')
        async with open_channel(f"127.0.0.1:{port}") as channel:
            await call(EchoStub(channel).say, text("0"), timeout_s=5)

        def scrape() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics", timeout=5) as page:
                return str(page.read(), "utf-8")

        page = await asyncio.to_thread(scrape)
        assert 'twinmesh_echo_rpc_total{code="OK",method="EchoService/Say"} 1.0' in page
        assert 'twinmesh_echo_rpc_seconds_count{method="EchoService/Say"} 1.0' in page
        assert 'twinmesh_echo_rpc_in_flight{kind="unary"} 0.0' in page
        assert "process_resident_memory_bytes" in page
        running.process.terminate()
        assert await running.ended() == 0
