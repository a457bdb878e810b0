"""Topics and payloads of plain MQTT, and the table that describes them."""

import json
import textwrap

import pytest

from twinmesh_client import InvalidArgument
from twinmesh_connectors.config import read_config
from twinmesh_connectors.mqtt.payloads import PlainTopic, resolve
from twinmesh_connectors.mqtt.topics import NameTemplate, TopicTemplate
from twinmesh_connectors.readings import Unreadable
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.quality import Quality

NOW = 1_772_362_800_000_000


def plain(topic: str = "plants/{twin}/{channel}", twin: str = "{twin}", channel: str | None = "{channel}", **changes):
    template = TopicTemplate(topic)
    return PlainTopic(
        topic=template,
        twin=NameTemplate(twin, template.names),
        channel=None if channel is None else NameTemplate(channel, template.names),
        **changes,
    )


def read(topic: PlainTopic, name: str, payload: object):
    places = topic.topic.match(name)
    assert places is not None
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    readings, reasons = topic.read(places, body, NOW)
    return [(r.twin_id, r.channel, r.value, r.time_unix_us) for r in readings], reasons


def test_a_template_subscribes_and_takes_apart():
    template = TopicTemplate("sites/{site}/+/{device}/#")
    assert template.subscription == "sites/+/+/+/#"
    assert template.match("sites/a/x/d1/temp/now") == {"site": "a", "device": "d1"}
    assert template.match("sites/a/d1") is None
    assert TopicTemplate("a.b/{x}").match("aXb/1") is None


@pytest.mark.parametrize("text", ["", "a/{x}/{x}", "a/b{x}", "a/#/b", "a/x+"])
def test_templates_that_are_none(text):
    with pytest.raises(ValueError, match=r"topic|level|twice"):
        TopicTemplate(text)


def test_a_name_may_only_use_what_the_topic_has():
    with pytest.raises(ValueError, match=r"\{plant\}.*it has \{site\}"):
        NameTemplate("{plant}-1", ("site",))
    assert NameTemplate("{site}-{device}", ("site", "device")).fill({"site": "a", "device": "b"}) == "a-b"


def test_one_value_per_topic():
    assert read(plain(), "plants/P1/temperature", 61.5) == ([("P1", "temperature", 61.5, NOW)], [])
    assert read(plain(form="number"), "plants/P1/temperature", b" 61.5 ")[0][0][2] == 61.5
    assert read(plain(form="text"), "plants/P1/note", "grün".encode())[0][0][2] == "grün"


def test_an_object_of_channels():
    topic = plain("plants/{twin}", channel=None, time="/ts", time_form="ms", names={"T": "temperature"})
    found, reasons = read(topic, "plants/P1", {"ts": 1_000, "T": 60, "running": True, "extra": {"a": 1}, "none": None})
    assert found == [("P1", "temperature", 60.0, 1_000_000), ("P1", "running", True, 1_000_000)]
    assert reasons == []


def test_fields_by_pointer_units_kinds_and_quality():
    topic = plain(
        "plants/{twin}",
        channel=None,
        fields={"/m/0/v": "temperature", "/m/1/v": "stage", "/absent": "pressure"},
        quality="/q",
        units={"temperature": "degF"},
        kinds={"stage": K.STATE},
    )
    places = topic.topic.match("plants/P1")
    assert places is not None
    readings, reasons = topic.read(places, b'{"m": [{"v": 140}, {"v": 2}], "q": "uncertain"}', NOW)
    assert [(r.channel, r.kind, r.value, r.unit) for r in readings] == [
        ("temperature", K.GAUGE, 140.0, "degF"),
        ("stage", K.STATE, 2, ""),
    ]
    assert {r.quality for r in readings} == {Quality.UNCERTAIN}
    assert reasons == []


def test_an_array_of_samples_with_one_broken():
    topic = plain(value="/v", time="/t", time_form="s")
    samples = [{"t": 1, "v": 10}, {"t": "soon", "v": 11}, {"t": 3, "v": "hot"}, {"t": 4, "v": 12}]
    found, reasons = read(plain(value="/v", time="/t", time_form="s", kinds={"temperature": K.GAUGE}),
                          "plants/P1/temperature", samples)  # fmt: skip
    assert [f[2:] for f in found] == [(10.0, 1_000_000), (12.0, 4_000_000)]
    assert reasons == ["time not understood", "value is no gauge"]
    with pytest.raises(Unreadable, match="value is not in the message"):
        read(topic, "plants/P1/temperature", [{"t": 1}])


@pytest.mark.parametrize(
    ("topic", "name", "payload", "reason"),
    [
        (plain(), "plants/P1/temperature", b"{", "no JSON"),
        (plain(), "plants/P1/temperature", b"\xff", "not UTF-8"),
        (plain(), "plants/P 1/temperature", b"1", "no twin id"),
        (plain("p/{twin}", channel=None), "p/P1", b"1", "no object"),
        (plain(form="number"), "plants/P1/temperature", b"warm", "no gauge"),
        (plain(), "plants/P1/temperature", b"[" * 100_000, "no JSON"),
        (
            plain("p/{twin}", channel=None),
            "p/P1",
            json.dumps({f"c{i}": i for i in range(20_000)}).encode(),
            "more than",
        ),
    ],
)
def test_messages_that_cannot_be_read(topic, name, payload, reason):
    with pytest.raises(Unreadable, match=reason):
        read(topic, name, payload)


def test_channel_names_that_are_none_are_told_one_by_one():
    found, reasons = read(plain("p/{twin}", channel=None), "p/P1", {"ok": 1, "Not Ok": 2})
    assert [f[1] for f in found] == ["ok"]
    assert reasons == ["name is no channel name"]


def test_pointers_follow_the_rfc():
    document = {"a/b": {"m~n": [10, 20]}}
    assert resolve(document, "/a~1b/m~0n/1") == 20
    assert resolve(document, "/a~1b/m~0n/2") is not None  # the mark for nothing
    assert resolve([1], "/0") == 1


@pytest.fixture
def read_file(tmp_path):
    def write_and_read(text: str):
        path = tmp_path / "connectors.toml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return read_config(path)

    return write_and_read


def test_a_whole_table(read_file, monkeypatch):
    monkeypatch.setenv("BROKER_PASSWORD", "secret")
    (entry,) = read_file("""
        [connectors.plant]
        kind = "mqtt"
        host = "broker.example"
        username = "reader"
        password_env = "BROKER_PASSWORD"
        session_expiry = "1d"
        [[connectors.plant.topics]]
        topic = "plants/{site}/{device}"
        twin = "{site}-{device}"
        fields = { "/t" = "temperature" }
        time = "/ts"
        time_format = "ms"
        units = { temperature = "degF" }
        kinds = { stage = "state" }
        [connectors.plant.sparkplug]
        group = "Plant1"
        twin = "{node}-{device}"
    """).entries
    connector = entry.connector
    assert connector._subscriptions == {"plants/+/+": 1, "spBv1.0/Plant1/#": 1}
    broker = connector._broker
    assert (broker.port, broker.password, broker.session_expiry_s, broker.version) == (1883, "secret", 86_400, 5)


@pytest.mark.parametrize(
    ("keys", "key", "remedy"),
    [
        ("", "connectors.m.topics", "sparkplug table"),
        ("[[connectors.m.topics]]\ntopic = 'a/{x'", "topics[0].topic", "whole level"),
        ("[[connectors.m.topics]]\ntopic = 'a/{twin}'\nformat = 'number'", "topics[0].channel", "{channel}"),
        ("[[connectors.m.topics]]\ntopic = 'a/b'", "topics[0].twin", "it has none"),
        ("[[connectors.m.topics]]\ntopic = 'a/{twin}'\nvalue = 'v'", "topics[0].value", "JSON Pointer"),
        ("[[connectors.m.topics]]\ntopic = 'a/{twin}'\nfields = { '/v' = 'V' }", "topics[0].fields", "lower-case"),
        ("[[connectors.m.topics]]\ntopic = 'a/{twin}'\nkinds = { a = 'number' }", "topics[0].kinds.a", "gauge"),
        ("[[connectors.m.topics]]\ntopic = 'a/{twin}'\ntime_format = 'hours'", "topics[0].time_format", "iso"),
        ("[[connectors.m.topics]]\ntopic = 'a/{twin}'\nvalu = '/v'", "topics[0].valu", "did you mean value?"),
        ("password_env = 'NOT_THERE_AT_ALL'", "connectors.m.password_env", "not set"),
        ("ca = 'nowhere.pem'", "connectors.m.ca", "names no file"),
        ("[connectors.m.sparkplug]\ntwin = '{plant}'", "sparkplug.twin", "{group}"),
    ],
)
def test_what_is_wrong_is_named(read_file, keys, key, remedy):
    with pytest.raises(InvalidArgument) as error:
        read_file(f"[connectors.m]\nkind = 'mqtt'\nhost = 'broker'\n{keys}")
    (violation,) = error.value.field_violations
    assert violation.field.endswith(key)
    assert remedy in violation.description
