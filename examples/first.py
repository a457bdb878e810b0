"""The first ten minutes with the SDK: describe an entity, send facts, read them back, direct it, watch it converge.

twinmesh up                  # in another terminal; or set TWINMESH_TARGET=host:7400
python examples/first.py
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd

import twinmesh_client as tm


def main() -> None:
    """Run the example against the mesh of the saved context."""
    with tm.connect() as mesh:
        # A type says which channels an entity has. Creating it again with equal content changes nothing.
        mesh.types.create(
            tm.twin_type(
                "first-pump@1",
                [
                    tm.channel("flow", "m3/h", minimum=0, maximum=500),
                    tm.channel("bearing", "Cel", upper_limit=85),
                    tm.channel("speed", "%", controllable=True, tolerance=0.5),
                ],
            )
        )
        pump = mesh.twins.create("first-pump", type="first-pump@1", time_zone="Europe/Berlin", if_absent=True)

        # Facts: a row per time, a column per channel. Here the bearing is measured in degrees Fahrenheit.
        minutes = pd.date_range(datetime.now(UTC) - timedelta(minutes=30), periods=30, freq="1min")
        frame = pd.DataFrame(
            {"flow": 120.0, "bearing": [140.0 + i / 10 for i in range(30)], "speed": 40.0}, index=minutes
        )
        ack = pump.write(frame, units={"bearing": "degF"})
        print("written  ", ack)

        # History: as it is stored, in the channel's own unit, at or after our own write.
        means = pump.read("bearing", last="1h", every="10min", min_offset=ack.offset).to_pandas().dropna()
        print("read     ", f"{len(means)} means of 10 min, the newest {means['bearing'].iloc[-1]:.2f} Cel")

        # A row that cannot be stored is kept aside with the reason; nothing else suffers.
        refused = pump.write_values({"pressure": 3.2})
        print("refused  ", refused.outcomes[0].example)

        # A target opens a delta; a fact that meets it closes it. Here we play the device ourselves.
        want = pump.set_desired({"speed": 55.0}, deadline="60s")
        print("wanted   ", dict(want.delta))
        pump.write_values({"speed": 55.2})
        for event in pump.watch(resume_after=want.before):
            if event.converged(want):
                print("converged", f"at offset {event.offset:,}")
                break


if __name__ == "__main__":
    main()
