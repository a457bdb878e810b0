"""The command line against the real services, as a person and as a program use it."""

import json
import re
import threading
import time

import numpy as np
import pandas as pd
import pytest

import twinmesh_client as tm

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def pump(twinmesh, tmp_path, request) -> str:
    """A twin of the type that `twinmesh types example` prints."""
    _, example, _ = twinmesh("types", "example")
    (tmp_path / "pump.json").write_text(example)
    assert twinmesh("types", "create", str(tmp_path / "pump.json"))[0] == 0
    name = f"cli-{request.node.name.removeprefix('test_')}"[:60]
    assert twinmesh("twins", "create", name, "--type", "pump@1", "--attribute", "site=north")[0] == 0
    return name


def test_env_and_smoke(twinmesh, target):
    status, out, _ = twinmesh("env")
    assert status == 0
    assert f"export TWINMESH_TARGET={target}" in out
    _, out, _ = twinmesh("env", "--json")
    assert json.loads(out)["endpoints"]["ingestion"] == target
    status, out, _ = twinmesh("smoke")
    assert status == 0, out
    assert "9 of 9 checks" in out
    _, out, _ = twinmesh("smoke", "--json")
    assert json.loads(out)["passed"]
    assert "smoke-" not in twinmesh("twins", "list")[1]


def test_types_and_twins(twinmesh, pump):
    assert "bearing" in twinmesh("types", "show", "pump")[1]
    assert any(t["type"] == "pump@1" for t in json.loads(twinmesh("types", "list", "--json")[1]))
    assert pump in twinmesh("twins", "list", "--type", "pump")[1]
    assert "site: north" in twinmesh("twins", "show", pump)[1]
    status, _, err = twinmesh("twins", "create", pump, "--type", "pump@1")
    assert status == 1
    assert "exists" in err
    assert twinmesh("twins", "create", pump, "--type", "pump@1", "--if-absent")[0] == 0
    assert twinmesh("twins", "delete", pump)[0] == 0
    assert twinmesh("twins", "show", pump)[0] == 1


def test_write_and_read_back(twinmesh, pump):
    status, out, _ = twinmesh("write", pump, "flow=12.5", "running=true", "bearing=140", "--unit", "bearing=degF")
    assert status == 0
    assert "accepted 3" in out
    channels = json.loads(twinmesh("latest", pump, "--json")[1])["channels"]
    assert (channels["flow"]["value"], channels["running"]["value"]) == (12.5, True)
    assert channels["bearing"]["value"] == pytest.approx(60.0)
    assert "12.5" in twinmesh("latest", pump)[1]
    assert "12.5" in twinmesh("range", pump)[1]
    assert "flow" in twinmesh("range", pump, "flow", "--csv", "-")[1]
    assert twinmesh("range", pump, "--last", "1h", "--start", "2026-01-01T00:00:00Z")[0] == 2
    status, _, err = twinmesh("latest", pump, "flow", "nope")
    assert (status, "has no channel 'nope'; it has: flow, bearing" in err) == (1, True)
    assert "no value yet" in twinmesh("latest", pump, "speed")[1]
    status, _, err = twinmesh("range", pump, "flow", "--fill", "hold")
    assert (status, "--fill needs --every" in err) == (2, True)
    status, _, err = twinmesh("range", pump, "flow", "--every", "1month")
    assert (status, "day, week, month" in err) == (1, True)


def test_an_unknown_twin_is_mended_by_the_command_that_the_error_prints(twinmesh, pump):
    ghost = f"{pump}-ghost"
    status, out, err = twinmesh("write", ghost, "flow=1")
    assert status == 1
    assert "quarantined 1" in out
    remedy = re.search(r"`twinmesh (.*?)`", err)
    assert remedy
    assert ghost in twinmesh("quarantine", "list", "--twin", ghost)[1]
    assert json.loads(twinmesh("quarantine", "list", "--reason", "unknown_twin", "--json")[1])["total"] >= 1
    # TYPE@VERSION stands there when the mesh has several types.
    assert twinmesh(*remedy[1].replace("TYPE@VERSION", "pump@1").split())[0] == 0
    assert twinmesh("write", ghost, "flow=1")[0] == 0
    assert "1 would leave" in twinmesh("quarantine", "replay", "--twin", ghost, "--dry-run")[1]
    replayed = json.loads(twinmesh("quarantine", "replay", "--twin", ghost, "--reason", "unknown_twin", "--json")[1])
    assert (replayed["replay"]["left"], replayed["replay"]["kept"]) == (1, 0)
    assert twinmesh("write", ghost, "altitude=1")[0] == 1
    assert "1 discarded" in twinmesh("quarantine", "discard", "--twin", ghost, "--comment", "no such sensor")[1]
    assert "no such sensor" in twinmesh("quarantine", "list", "--twin", ghost, "--state", "discarded", "--json")[1]
    assert json.loads(twinmesh("quarantine", "list", "--twin", ghost, "--json")[1])["total"] == 0


def test_a_csv_with_a_broken_row_names_it_and_can_leave_it_out(twinmesh, pump, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("time,Flow rate,bearing\n2026-11-20 08:00,1,60\n2026-11-20 08:01,hot,61\n2026-11-20 08:02,3,62\n")
    command = ("write", pump, "--csv", str(path), "--map", "Flow rate=flow", "--backfill")
    status, _, err = twinmesh(*command)
    assert status == 1
    assert "--tz Europe/Berlin" in err
    status, _, err = twinmesh(*command, "--tz", "Europe/Berlin")
    assert status == 1
    assert "line 3, column 'Flow rate': 'hot' is no number" in err
    status, out, err = twinmesh(*command, "--tz", "Europe/Berlin", "--skip-broken")
    assert status == 0
    assert "accepted 5" in out
    assert "skipped: line 3" in err
    status, _, err = twinmesh("write", pump, "--csv", str(path), "--tz", "UTC", "--skip-broken")
    assert status == 2
    assert "--map 'Flow rate=CHANNEL'" in err
    rows = json.loads(twinmesh("range", pump, "flow", "--start", "2026-11-20T00:00:00Z", "--json")[1])
    assert rows["columns"]["flow"] == [1.0, 3.0]
    assert rows["time"][0] == "2026-11-20T07:00:00Z"


def test_watch_tells_changes_as_lines(twinmesh, pump):
    twinmesh("write", pump, "flow=7")
    status, out, _ = twinmesh("watch", pump, "--count", "1")
    assert status == 0
    assert "SNAPSHOT" in out
    assert "flow=7" in out
    _, out, _ = twinmesh("watch", pump, "--from", "1", "--count", "2", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["kind"], second["reported"]["flow"]["value"]) == ("CREATED", 7.0)


def test_targets(twinmesh, pump, target):
    status, _, err = twinmesh("desired", "set", pump, "speed=50", "--deadline", "300ms", "--wait")
    assert status == 1
    assert "deadline" in err

    def obey() -> None:
        with tm.connect(target) as mesh:
            for _ in range(100):
                if mesh.twins[pump].get().delta:
                    mesh.twins[pump].write_values({"speed": 60.0})
                    return
                time.sleep(0.1)

    twinmesh("desired", "set", pump, "--remove", "speed")
    device = threading.Thread(target=obey)
    device.start()
    status, out, _ = twinmesh("desired", "set", pump, "speed=60", "--wait", "20s")
    device.join()
    assert status == 0
    assert "reached after" in out
    assert "APPLIED" in twinmesh("desired", "get", pump)[1]
    status, _, err = twinmesh("desired", "set", pump, "speed=70", "--if-revision", "0")
    assert status == 1
    assert "REVISION_CONFLICT" in err
    assert "desired set" in twinmesh("desired", "set", pump)[2]


def test_train_promote_forecast(twinmesh, pump, tmp_path):
    index = pd.date_range(end=pd.Timestamp.now(tz="UTC").floor("1h"), periods=24 * 40, freq="1h", name="time")
    rng = np.random.default_rng(3)
    heat = 60 + 10 * np.sin(2 * np.pi * np.arange(len(index)) / 24) + rng.normal(0, 0.3, len(index))
    pd.DataFrame({"bearing": heat, "flow": 100 + heat}, index=index).to_csv(tmp_path / "heat.csv")
    status, _, err = twinmesh("train", "--twin", pump)
    assert status == 1
    assert "no history of bearing" in err
    assert twinmesh("write", pump, "--csv", str(tmp_path / "heat.csv"), "--backfill")[0] == 0
    status, out, err = twinmesh("train", "--twin", pump, "--family", "ridge")
    assert status == 0, err
    assert "PROMOTED" in out
    assert "pump-bearing@1 serves" in out
    status, out, err = twinmesh("forecast", pump, "bearing", "--horizon", "6h", "--record")
    assert status == 0, err
    assert "limit 85 Cel is kept" in out
    document = json.loads(twinmesh("forecast", pump, "bearing", "--json")[1])
    assert len(document["values"]) == 12
    assert "up to" in twinmesh("twins", "show", pump)[1]
    assert "pump-bearing@1" in twinmesh("models")[1]
    assert "PRODUCTION" in twinmesh("models", "pump-bearing")[1]
    assert "READY" in twinmesh("models", "deployments")[1]
    assert twinmesh("models", "promote", "pump-bearing@1")[0] == 0
    assert twinmesh("models", "promote", "pump-bearing")[0] == 2


def test_what_takes_away_and_what_counts_it(twinmesh, pump):
    assert twinmesh("write", pump, "flow=1", "bearing=60")[0] == 0
    counted = twinmesh("statistics", pump)[1]
    assert re.search(r"observations\s+2\n", counted)
    assert "bytes on disk" not in counted  # those are nobody's own
    assert "bytes on disk" in twinmesh("statistics")[1]
    assert "never had an observation of 'nobody'" in twinmesh("statistics", "nobody")[2]
    status, _, err = twinmesh("delete", pump, "flow")
    assert (status, "--all" in err) == (2, True)
    assert "hidden from offset" in twinmesh("delete", pump, "flow", "--all")[1]
    assert list(json.loads(twinmesh("latest", pump, "--json")[1])["channels"]) == ["bearing"]
    status, _, err = twinmesh("erase", pump)
    assert (status, "--yes" in err) == (2, True)
    status, out, _ = twinmesh("erase", pump, "--yes")
    assert status == 0
    assert "erased: " in out
    assert json.loads(twinmesh("latest", pump, "--json")[1])["channels"] == {}


def test_rules_of_how_long_history_is_kept(twinmesh, pump):
    rule = ("--twin", pump, "--channel", "flow")
    assert re.search(rf"{pump}\s+flow\s+any\s+90 d", twinmesh("retention", "set", "90d", *rule)[1])
    assert re.search(rf"{pump}\s+flow\s+any\s+for ever", twinmesh("retention", "set", "forever", *rule)[1])
    rules = json.loads(twinmesh("retention", "list", "--json")[1])["rules"]
    assert {"twin_id": pump, "channel": "flow", "keep": None, "retention_class": ""} in rules
    assert pump not in twinmesh("retention", "remove", *rule)[1]
    assert re.search(r"all\s+all\s+fast\s+7 d", twinmesh("retention", "set", "7d", "--class", "fast")[1])
    assert "fast" not in twinmesh("retention", "remove", "--class", "fast")[1]
    status, _, err = twinmesh("retention", "set", "1s", *rule)
    assert (status, "keep" in err) == (1, True)
