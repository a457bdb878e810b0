"""The device side against the real services: catching up, refusing, answering, and surviving a kill."""

import asyncio
import signal
import threading
from contextlib import aclosing

import pytest

import twinmesh_client as tm

pytestmark = pytest.mark.timeout(180)
FAN = tm.twin_type(
    "device-fan@1",
    [
        tm.channel("speed", "%", tolerance=0.5, controllable=True),
        tm.channel("tilt", "deg", controllable=True, set_command="set_tilt"),
    ],
    commands=[tm.command("set_tilt", "value"), tm.command("calibrate")],
)


@pytest.fixture
async def fan(mesh, request):
    await mesh.types.create(FAN)
    return await mesh.twins.create(request.node.name.removeprefix("test_")[:90], type="device-fan@1")


async def until(twin, wanted):
    """Return the first replica for which something holds."""
    async with asyncio.timeout(30), aclosing(twin.watch()) as events:
        async for _ in events:
            replica = await twin.get()
            if wanted(replica):
                return replica
    return None


async def insisted(ask):
    """Return the answer, however often it takes: a server that was just restarted may be away once more."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await ask()
            except tm.Unavailable:
                await asyncio.sleep(0.1)


async def ended(twin, command_id):
    async with asyncio.timeout(30):
        while not (found := await twin.command(command_id)).ended:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def test_a_device_takes_what_it_missed_in_the_order_in_which_it_was_decided(mesh, fan, tmp_path):
    first = await fan.send_command("calibrate", time_to_live="1min")
    await fan.set_desired({"speed": 40.0})
    await fan.set_desired({"tilt": 10.0})
    last = await fan.send_command("calibrate")
    done = []
    device = mesh.device(fan.twin_id, state=tmp_path / "fan")

    @device.on_command("calibrate")
    def calibrate(order):
        done.append(order.name)
        return {"offset": 0.25}

    @device.on_desired("speed")
    async def speed(want):
        done.append(("speed", want.value))
        return want.value

    @device.on_desired("tilt")
    def tilt(want):
        done.append(("tilt", want.value))
        return want.value

    async with device:
        answered = await ended(fan, last.command_id)
        assert (answered.state, answered.result) == ("SUCCEEDED", {"offset": 0.25})
        replica = await until(fan, lambda r: len(r.desired) == 2 and not r.delta)
    assert done == ["calibrate", ("speed", 40.0), ("tilt", 10.0), "calibrate"]
    assert {c: v.state for c, v in replica.desired.items.items()} == {"speed": "APPLIED", "tilt": "APPLIED"}
    assert (await fan.command(first.command_id)).state == "SUCCEEDED"
    assert replica.connectivity == "ONLINE"
    done.clear()
    async with mesh.device(fan.twin_id, {"calibrate": calibrate}, state=tmp_path / "fan") as again:
        assert (await ended(fan, (await fan.send_command("calibrate")).command_id)).state == "SUCCEEDED"
        assert again.connected
    assert done == ["calibrate"], "what was done is not done again"


async def test_a_device_refuses_a_target_and_a_caller_cancels_what_it_does(mesh, fan):
    device = mesh.device(fan.twin_id)
    at_work = asyncio.Event()

    @device.on_desired("speed")
    def speed(want):
        raise tm.Refused("the belt is off")

    @device.on_command("calibrate")
    async def calibrate(order):
        order.progress(20, "turning")
        at_work.set()
        await order.wait_cancelled()
        order.check_cancelled()

    async with device:
        refused = await fan.set_desired({"speed": 50.0})

        async def wait():
            async with asyncio.timeout(20), aclosing(fan.watch(resume_after=refused.before)) as changes:
                async for change in changes:
                    if change.converged(refused):
                        return

        with pytest.raises(tm.NotConverged, match="the belt is off"):
            await wait()
        sent = await fan.send_command("calibrate")
        await asyncio.wait_for(at_work.wait(), 20)
        asked = await fan.cancel_command(sent.command_id, "not needed")
        assert (asked.state, asked.cancel_requested) == ("DELIVERED", True)
        gone = await ended(fan, sent.command_id)
        assert (gone.state, gone.message, gone.progress_percent) == ("CANCELLED", "not needed", 20.0)
    with pytest.raises(tm.FailedPrecondition) as unmet:
        await fan.send_command("calibrate", when=[tm.desired("speed") > 60.0])
    assert tm.current_state(unmet.value)["channels"]["speed"]["state"] == "REJECTED"


def test_a_device_may_be_written_without_async(target):
    with tm.connect(target) as mesh:
        mesh.types.create(FAN)
        twin = mesh.twins.create("plain-fan", type="device-fan@1", if_absent=True)
        device = mesh.device("plain-fan")
        obeyed = threading.Event()

        @device.on_desired("speed")
        def speed(want):
            device.report({"speed": want.value})
            obeyed.set()

        with device:
            want = twin.set_desired({"speed": 30.0})
            assert obeyed.wait(20)
            assert device.flush().accepted >= 1
            for change in twin.watch(resume_after=want.before):
                if change.converged(want):
                    break


@pytest.mark.faults
async def test_a_device_gets_its_orders_through_a_kill_of_state_sync(running_mesh, mesh, fan):
    restarts = running_mesh.restarts("statesync")
    done = []
    device = mesh.device(fan.twin_id, {"calibrate": lambda order: done.append(order.command_id)})
    async with device:
        first = await fan.send_command("calibrate")
        await ended(fan, first.command_id)
        running_mesh.kill("statesync", signal.SIGKILL)
        await asyncio.to_thread(running_mesh.until_restarted, "statesync", restarts + 1)
        second = await insisted(lambda: fan.send_command("calibrate", request_id="after-the-kill"))
        await ended(fan, second.command_id)
    assert done == [first.command_id, second.command_id]
