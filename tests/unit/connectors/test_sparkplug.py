"""Sparkplug B: births, data by alias, sequences, deaths."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.connectors.sparkplug_edge import (
    BOOLEAN,
    DATASET,
    DOUBLE,
    FLOAT,
    INT16,
    INT64,
    STRING,
    UINT32,
    metric,
    payload,
)

from twinmesh_connectors.mqtt.sparkplug import Heard, Sparkplug, rebirth_request
from twinmesh_connectors.mqtt.sparkplug_message import Payload
from twinmesh_connectors.readings import Unreadable
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.quality import Quality

MS = 1_772_362_800_000
NOW = MS * 1_000 + 5


def rows(heard: Heard) -> list[tuple[str, str, object, int, int]]:
    return [(r.twin_id, r.channel, r.value, r.time_unix_us, int(r.quality)) for r in heard.readings]


def born(**options: object) -> Sparkplug:
    host = Sparkplug(**options)  # type: ignore[arg-type]  # options of the test
    host.read("spBv1.0/G/NBIRTH/E", payload(metric("bdSeq", 3, INT64), seq=0), NOW)
    heard = host.read(
        "spBv1.0/G/DBIRTH/E/P1",
        payload(
            metric("Motor/Temp", 60.5, alias=1, unit="Cel"),
            metric("Stage", 2, INT16, alias=2),
            metric("Running", True, BOOLEAN, alias=3),
            seq=1,
        ),
        NOW,
    )
    assert heard.rebirth is None
    return host


def test_a_birth_names_what_data_only_numbers() -> None:
    host = Sparkplug(kinds={"stage": K.STATE})
    host.read("spBv1.0/G/NBIRTH/E", payload(metric("bdSeq", 3, INT64), metric("Node Control/Rebirth", False, BOOLEAN),
                                            metric("uptime", 5, UINT32), seq=0), NOW)  # fmt: skip
    birth = host.read(
        "spBv1.0/G/DBIRTH/E/P1",
        payload(metric("Motor/Temp", 60.5, alias=1, unit="Cel"), metric("Stage", 2, INT16, alias=2), seq=1),
        NOW,
    )
    assert rows(birth) == [("P1", "motor_temp", 60.5, MS * 1000, 0), ("P1", "stage", 2, MS * 1000, 0)]
    assert birth.readings[0].unit == "Cel"
    data = host.read(
        "spBv1.0/G/DDATA/E/P1",
        payload(metric(value=-7, datatype=INT16, alias=2), metric(value=61.25, alias=1, ms=MS + 10, quality=0), seq=2),
        NOW,
    )
    assert rows(data) == [("P1", "stage", -7, MS * 1000, 0), ("P1", "motor_temp", 61.25, (MS + 10) * 1000, 3)]
    assert data.rebirth is None


def test_an_edge_nodes_own_metrics_are_its_own_twins() -> None:
    host = Sparkplug(node_twin="{group}-{node}", twin="{node}-{device}")
    heard = host.read("spBv1.0/G/NBIRTH/E", payload(metric("uptime", 5, UINT32), seq=0), NOW)
    assert rows(heard) == [("G-E", "uptime", 5.0, MS * 1000, 0)]


def test_a_hole_in_the_sequence_asks_for_a_new_birth() -> None:
    host = born()
    assert host.read("spBv1.0/G/DDATA/E/P1", payload(metric(value=1.0, alias=1), seq=2), NOW).rebirth is None
    lost = host.read("spBv1.0/G/DDATA/E/P1", payload(metric(value=2.0, alias=1), seq=4), NOW)
    assert lost.rebirth == ("G", "E")
    assert len(lost.readings) == 1  # what came is not thrown away


def test_who_comes_late_asks_for_a_birth_and_reads_what_is_named_in_full() -> None:
    heard = Sparkplug().read("spBv1.0/G/DDATA/E/P1", payload(metric(value=1.0, alias=9), metric("T", 2.0), seq=7), NOW)
    assert heard.rebirth == ("G", "E")
    assert rows(heard) == [("P1", "t", 2.0, MS * 1000, 0)]
    assert heard.reasons == ["alias without a birth"]


def test_sequences_wrap() -> None:
    host = born()
    for seq in [*range(2, 256), 0, 1]:
        assert host.read("spBv1.0/G/DDATA/E/P1", payload(metric(value=1.0, alias=1), seq=seq), NOW).rebirth is None


def test_after_an_interruption_the_next_message_asks_for_a_birth() -> None:
    host = born()
    host.forget_sequences()
    assert host.read("spBv1.0/G/DDATA/E/P1", payload(metric(value=1.0, alias=1), seq=2), NOW).rebirth == ("G", "E")


def test_a_death_makes_the_last_values_uncertain_and_voids_the_aliases() -> None:
    host = born()
    heard = host.read("spBv1.0/G/NDEATH/E", payload(metric("bdSeq", 3, INT64)), NOW)
    assert [(r[1], r[2], r[3], r[4]) for r in rows(heard)] == [
        ("motor_temp", 60.5, NOW, Quality.UNCERTAIN),
        ("stage", 2.0, NOW, Quality.UNCERTAIN),
        ("running", True, NOW, Quality.UNCERTAIN),
    ]
    after = host.read("spBv1.0/G/DDATA/E/P1", payload(metric(value=1.0, alias=1), seq=2), NOW)
    assert (after.rebirth, after.readings) == (("G", "E"), [])


def test_the_will_of_an_earlier_connection_is_ignored() -> None:
    host = born()
    assert host.read("spBv1.0/G/NDEATH/E", payload(metric("bdSeq", 2, INT64)), NOW).readings == []
    assert host.read("spBv1.0/G/DDATA/E/P1", payload(metric(value=1.0, alias=1), seq=2), NOW).rebirth is None


def test_a_device_may_die_alone() -> None:
    host = born(mark_stale=False)
    assert host.read("spBv1.0/G/DDEATH/E/P1", payload(seq=2), NOW).readings == []
    assert host.read("spBv1.0/G/NDATA/E", payload(metric("uptime", 1, UINT32), seq=3), NOW).rebirth is None


def test_null_repeats_the_last_value_as_bad() -> None:
    host = born()
    heard = host.read("spBv1.0/G/DDATA/E/P1", payload(metric(alias=1, ms=MS + 1), seq=2), NOW)
    assert rows(heard) == [("P1", "motor_temp", 60.5, (MS + 1) * 1000, Quality.BAD)]


def test_what_has_no_channel_is_told() -> None:
    host = born()
    heard = host.read(
        "spBv1.0/G/DDATA/E/P1",
        payload(metric("Table", None, DATASET), metric("Ratio", 0.5, FLOAT), metric("Who", "öl", STRING), seq=2),
        NOW,
    )
    assert heard.reasons == ["value is of a kind that has no channel (data set, template, bytes)"]
    assert [r[2] for r in rows(heard)] == [0.5, "öl"]


def test_two_metrics_never_become_one_series() -> None:
    host = born()
    data = payload(metric("Motor Temp", 99.0), metric("Motor/Temp", 61.0), seq=2)
    heard = host.read("spBv1.0/G/DDATA/E/P1", data, NOW)
    assert [r[2] for r in rows(heard)] == [61.0]
    assert heard.reasons == ["name taken by another metric"]
    named = born(names={"Motor Temp": "winding_temp"})
    assert [r[1] for r in rows(named.read("spBv1.0/G/DDATA/E/P1", data, NOW))] == ["winding_temp", "motor_temp"]


@pytest.mark.parametrize("topic", ["spBv1.0/G/DDATA/E", "spBv1.0/G/NDATA/E/D"])
def test_topics_that_are_none(topic: str) -> None:
    with pytest.raises(Unreadable):
        Sparkplug().read(topic, payload(seq=0), NOW)


@pytest.mark.parametrize("topic", ["spBv1.0/STATE/host", "other/G/NDATA/E", "spBv1.0/G/NCMD/E"])
def test_topics_of_others_say_nothing(topic: str) -> None:
    assert Sparkplug().read(topic, b"\xff", NOW) == Heard()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["NBIRTH/E", "DDATA/E/P1", "NDEATH/E", "DBIRTH/E/P1"]))
def test_random_bytes_never_end_the_connector(body: bytes, rest: str) -> None:
    host = born()
    with contextlib.suppress(Unreadable):
        host.read(f"spBv1.0/G/{rest}", body, NOW)


def test_the_request_for_a_birth() -> None:
    message = Payload.FromString(rebirth_request(NOW))
    (asked,) = message.metrics
    assert (asked.name, asked.boolean_value, asked.datatype) == ("Node Control/Rebirth", True, 11)
    assert DOUBLE == 10
