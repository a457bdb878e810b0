"""A device in twenty lines: it reports its speed, obeys a wanted speed, and calibrates itself on command.

twinmesh up                  # in another terminal; or set TWINMESH_TARGET=host:7400
python examples/device.py    # until Ctrl-C; direct it with: twinmesh desired fan-1 speed=40
"""

import time

import twinmesh_client as tm

FAN = tm.twin_type(
    "fan@1",
    [tm.channel("speed", "%", minimum=0, maximum=100, tolerance=0.5, controllable=True, every="1s")],
    commands=[tm.command("calibrate")],
)

with tm.connect() as mesh:
    mesh.types.create(FAN)
    mesh.twins.create("fan-1", type="fan@1", if_absent=True)
    device = mesh.device("fan-1", state=".fan-1")
    fan = {"speed": 0.0}

    @device.on_desired("speed")
    def set_speed(want: tm.Target) -> float:
        """Obey, and return what is true now: it is reported at once, so that the delta closes."""
        if want.value > 90:
            raise tm.Refused("90 % is the most this fan takes")
        fan["speed"] = want.value
        return fan["speed"]

    @device.on_command("calibrate")
    def calibrate(order: tm.Order) -> dict[str, float]:
        """Take a while, tell how far it is, and answer."""
        for percent in range(0, 100, 20):
            order.check_cancelled()
            order.progress(percent, "spinning up")
            time.sleep(0.1)
        return {"offset": 0.3}

    with device:
        print("fan-1 is at work", flush=True)
        while True:
            device.report(fan)
            time.sleep(1)
