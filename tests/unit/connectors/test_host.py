"""This machine is read whatever it lacks."""

import psutil
import pytest

from twinmesh_connectors import host
from twinmesh_connectors.host import HostSampler, batch_of


def test_a_sample_holds_channels_of_the_type_only():
    sampler = HostSampler()
    values = sampler.sample()
    assert {"cpu", "memory_used", "processes"} <= values.keys() <= {c.name for c in host.TYPE.channels}
    assert all(isinstance(value, int) == (name == "processes") for name, value in values.items())


@pytest.mark.parametrize("answer", [None, OSError("no such sensor"), AttributeError, {}])
def test_missing_sensors_are_left_out(monkeypatch, answer):
    def read(*_):
        if answer is None or isinstance(answer, dict):
            return answer
        raise answer

    monkeypatch.setattr(psutil, "sensors_temperatures", read, raising=False)
    monkeypatch.setattr(psutil, "disk_io_counters", read)
    sampler = HostSampler()
    values = sampler.sample()
    assert {"temperature", "disk_read", "disk_write"}.isdisjoint(values)
    assert "cpu" in values
    assert sampler.missing["disk traffic"] == 2


def test_counters_that_run_backwards_give_no_rate(monkeypatch):
    class Net:
        bytes_sent = 5_000_000
        bytes_recv = 5_000_000

    monkeypatch.setattr(psutil, "net_io_counters", Net)
    sampler = HostSampler()
    Net.bytes_sent, Net.bytes_recv = 0, 6_000_000
    values = sampler.sample()
    assert "net_sent" not in values
    assert values["net_received"] > 0


def test_a_sample_becomes_one_batch():
    batch = batch_of("m", {"processes": 3, "cpu": 1.5}, 7)
    assert [k.channel for k in batch.series] == ["cpu", "processes"]
    assert batch.doubles.values.tolist() == [1.5]
    assert batch.int64s.values.tolist() == [3]
    assert batch.int64s.series.tolist() == [1]
