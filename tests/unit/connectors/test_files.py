"""A recorded file becomes the same batches each time it is read, and an import stores each value once."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twinmesh_client import InvalidArgument, Unavailable
from twinmesh_client.aio import session as session_module
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_client.modelling import channel, twin_type
from twinmesh_connectors.files import importing
from twinmesh_connectors.files.columns import ColumnGuess, guess_columns, match_columns
from twinmesh_connectors.files.importing import FileImport
from twinmesh_connectors.files.parquet import ParquetSource
from twinmesh_connectors.files.sources import CsvSource, Reading, first_table, open_source
from twinmesh_connectors.runner import Runner
from twinmesh_connectors.status import Status
from twinmesh_core.kinds import ChannelKind

KIND = twin_type(
    "press@1",
    [channel("oil", "Cel"), channel("stage", kind="state"), channel("on", kind="bool"), channel("note", kind="text")],
)
ROWS = 1_000


@pytest.fixture
def frame() -> pd.DataFrame:
    index = pd.date_range("2026-03-28", periods=ROWS, freq="1min", tz="UTC")
    return pd.DataFrame(
        {
            "time": index,
            "oil": np.arange(ROWS) * 0.5,
            "stage": np.arange(ROWS) % 4,
            "on": np.arange(ROWS) % 2 == 0,
            "note": [None if i % 10 else f"n{i}" for i in range(ROWS)],
        }
    )


@pytest.fixture(params=["csv", "csv.gz", "parquet"])
def source(request, frame, tmp_path):
    path = tmp_path / f"press.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=300)
        return ParquetSource(path, cells=500)
    frame.to_csv(path, index=False)
    return CsvSource(path, cells=500)


def columns_of(source, reading=Reading()):  # noqa: B008  frozen
    return match_columns(guess_columns(first_table(source, reading).frame), KIND, given={}, units={})


def settled(columns) -> Reading:
    return Reading(time_column="time", kinds={c.column: c.kind for c in columns})


def test_a_file_is_read_in_bounded_tables_that_hold_all_of_it(source, frame):
    tables = list(source.tables(Reading()))
    assert len(tables) == ROWS // 100
    assert [len(table.frame) for table, _ in tables] == [100] * 10
    shares = [share for _, share in tables]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    whole = pd.concat([table.frame for table, _ in tables])
    assert whole["oil"].tolist() == frame["oil"].tolist()
    assert (whole.index == pd.DatetimeIndex(frame["time"])).all()
    assert not any(table.broken for table, _ in tables)


async def test_an_import_that_is_interrupted_goes_on_where_it_was(source, fake, monkeypatch):
    monkeypatch.setattr(session_module, "FIRST_PAUSE_S", 0.01)
    columns = columns_of(source)
    assert {c.channel: c.kind.name for c in columns} == {"oil": "GAUGE", "stage": "STATE", "on": "BOOL", "note": "TEXT"}
    connector = FileImport(source, settled(columns), twin_id="t", columns=columns)

    def open_session(_on_ack=None, **options):
        return open_writer_async(connector.producer_id, target=fake.target, backfill=True, **options)

    fake.ingestion.fault = lambda sequence: Unavailable("killed") if sequence == 4 else None

    async def killed():
        async with open_session(patience_s=0.05) as writer:
            await connector.run(writer, Status(name="x"))

    with pytest.raises(Unavailable):
        await killed()
    fake.ingestion.fault = lambda _: None
    # Another process, another object.
    again = FileImport(source, settled(columns), twin_id="t", columns=columns)
    assert again.producer_id == connector.producer_id
    await Runner(again, open_session).run()
    assert (again.progress.batches_known, again.progress.share) == (3, 1.0)
    assert again.progress.sent + again.progress.known == again.progress.values
    assert fake.ingestion.producers[connector.producer_id].all_values() == [i * 0.5 for i in range(ROWS)]


async def test_a_source_that_fails_is_read_again_without_sending_twice(source, fake, monkeypatch):
    columns = columns_of(source)
    connector = FileImport(source, settled(columns), twin_id="t", columns=columns)
    real, failures = connector._next, iter([5, 9])
    count, due = 0, next(failures)

    def next_table(tables):
        nonlocal count, due
        count += 1
        if count == due:
            due = next(failures, 0) and count + 9
            raise OSError(5, "the disk is away")
        return real(tables)

    monkeypatch.setattr(connector, "_next", next_table)

    def open_session(on_ack):
        return open_writer_async(connector.producer_id, target=fake.target, backfill=True, on_ack=on_ack)

    runner = Runner(connector, open_session, first_pause_s=0.01)
    await runner.run()
    assert runner.status.restarts == 2
    assert fake.ingestion.producers[connector.producer_id].all_values() == [i * 0.5 for i in range(ROWS)]


def test_what_tells_an_import_from_another(source, frame):
    columns = columns_of(source)
    reading = settled(columns)

    def producer(**changes):
        given = {"reading": reading, "twin_id": "t", "columns": columns, "broken": "stop", **changes}
        path = given.pop("source", source)
        return FileImport(path, given.pop("reading"), **given).producer_id

    same = producer()
    assert producer(broken="skip") == same
    others = {
        producer(twin_id="u"),
        producer(broken="quarantine"),
        producer(reading=Reading(time_column="time", time_zone="UTC")),
        producer(columns=columns[:-1]),
    }
    copy = source.path.with_name("copy-" + source.path.name)
    copy.write_bytes(source.path.read_bytes())
    assert producer(source=open_source(copy)) == same
    copy.write_bytes(source.path.read_bytes() + b"\n")
    others.add(producer(source=open_source(copy)))
    assert len(others | {same}) == 6


BROKEN = """time,oil,stage
2026-01-01T00:00:00Z,1.5,1
2026-01-01T00:00:01Z,warm,2
2026-01-01T00:00:02Z,2.5,2.5
yesterday,3.5,1
2026-01-01T00:00:04Z,4.5,1,surplus
2026-01-01T00:00:05Z,5.5,3
"""


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.csv"
    path.write_text(BROKEN, encoding="utf-8")
    source = CsvSource(path)
    columns = tuple(
        ColumnGuess(column=name, channel=name, kind=kind, unit="")
        for name, kind in (("oil", ChannelKind.GAUGE), ("stage", ChannelKind.STATE))
    )

    def build(policy):
        return FileImport(source, settled(columns), twin_id="t", columns=columns, broken=policy)

    return build


@pytest.mark.parametrize(("policy", "texts"), [("skip", []), ("quarantine", ["warm", "2.5"])])
async def test_what_cannot_be_read_is_named_and_left_out_or_sent_aside(broken, fake, policy, texts, monkeypatch):
    connector = broken(policy)
    sent = []
    async with open_writer_async("p", target=fake.target) as writer:
        real = writer.write

        async def write(batch):
            sent.append(batch)
            return await real(batch)

        monkeypatch.setattr(writer, "write", write)
        await connector.run(writer, Status(name="x"))
    (batch,) = sent
    assert batch.doubles.values.tolist() == [1.5, 2.5, 5.5]
    assert batch.int64s.values.tolist() == [1, 2, 3]
    assert [t.decode() for t in batch.texts.texts()] == texts
    assert [batch.series[i].channel for i in batch.texts.series.tolist()] == ["oil", "stage"][: len(texts)]
    assert connector.progress.broken == 4
    assert (connector.progress.rows, connector.progress.quarantined) == (4, len(texts))
    assert {(b.line, b.column) for b in connector.progress.examples} >= {(3, "oil"), (5, "time"), (6, "")}


async def test_what_cannot_be_read_stops_an_import_where_that_was_chosen(broken, fake):
    async with open_writer_async("p", target=fake.target) as writer:
        with pytest.raises(InvalidArgument, match="line 3, column 'oil': 'warm' is no number"):
            await broken("stop").run(writer, Status(name="x"))


async def test_the_examples_are_few_however_many_are_broken(tmp_path, fake):
    path = tmp_path / "many.csv"
    lines = "".join(f"2026-01-01T00:{i // 60:02}:{i % 60:02}Z,{'x' if i % 3 == 0 else i}\n" for i in range(3_000))
    path.write_text("time,oil\n" + lines, encoding="utf-8")
    columns = (ColumnGuess(column="oil", channel="oil", kind=ChannelKind.GAUGE, unit=""),)
    connector = FileImport(CsvSource(path, cells=100), settled(columns), twin_id="t", columns=columns, broken="skip")
    async with open_writer_async("p", target=fake.target) as writer:
        await connector.run(writer, Status(name="x"))
    assert (connector.progress.broken, len(connector.progress.examples)) == (1_000, importing.NAMED)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("cells", [20, 30, 46, 1_000])
def test_an_hour_that_occurs_twice_is_told_apart_wherever_the_file_is_cut(tmp_path, form, cells):
    index = pd.date_range("2026-10-24 20:00", "2026-10-25 12:00", freq="10min", tz="UTC")
    local = index.tz_convert("Europe/Berlin").tz_localize(None)
    frame = pd.DataFrame({"time": local, "oil": np.arange(len(index), dtype=np.float64)})
    path = tmp_path / f"autumn.{form}"
    if form == "csv":
        frame.to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pandas(frame), path)
    source = CsvSource(path, cells=cells) if form == "csv" else ParquetSource(path, cells=cells)
    tables = [table for table, _ in source.tables(Reading(time_zone="Europe/Berlin"))]
    assert [b for table in tables for b in table.broken] == []
    assert [t for table in tables for t in table.frame.index] == list(index)


def test_an_hour_that_spring_leaves_out_is_named(tmp_path):
    path = tmp_path / "spring.csv"
    path.write_text("time,oil\n2026-03-29 01:30:00,1\n2026-03-29 02:30:00,2\n2026-03-29 03:30:00,3\n")
    table = first_table(CsvSource(path), Reading(time_zone="Europe/Berlin"))
    assert table.frame["oil"].tolist() == [1.0, 3.0]
    assert "does not exist in Europe/Berlin" in str(table.broken[0])


def test_times_that_change_their_form_are_refused(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text("time,oil\n" + "1767225600,1\n" * 10 + "2026-01-01T00:00:00Z,1\n" * 10)
    with pytest.raises(InvalidArgument, match="split the file"):
        list(CsvSource(path, cells=20).tables(Reading()))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "is empty"),
        ("head.csv", b"time,oil\n", "no readable row"),
        ("bytes.csv", b"time,oil\n\xff\xfe,1\n", "not UTF-8"),
        ("bad.csv.gz", b"not gzip at all", "damaged or another kind"),
        ("cut.csv.gz", gzip.compress(b"time,oil\n" + b"2026-01-01T00:00:00Z,1\n" * 9_999)[:-20], "damaged or another"),
        ("bad.parquet", b"PAR1 not really PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_reason(tmp_path, name, content, match):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    def read():
        return list(open_source(path).tables(Reading()))

    with pytest.raises(InvalidArgument, match=match):
        read()


def test_columns_find_their_channels():
    frame = pd.DataFrame({"oil": [1.0], "Stage": [1.0], "Oil Temp (degF)": [1.0], "x": [1.0]})
    guesses = guess_columns(frame)
    given = {"Oil Temp (degF)": "oil"}
    found = match_columns(guesses[1:], KIND, given=given, units={}, drop_unknown=True)
    assert [(c.column, c.channel, c.kind.name, c.note) for c in found] == [
        ("Stage", "stage", "STATE", "guessed"),
        ("Oil Temp (degF)", "oil", "GAUGE", "as you said"),
    ]
    assert found[1].unit == "[degF]"
    with pytest.raises(InvalidArgument, match="--map 'x=CHANNEL'"):
        match_columns(guesses, KIND, given=given, units={})
    with pytest.raises(InvalidArgument, match="both become 'oil'"):
        match_columns(guesses, KIND, given=given, units={}, drop_unknown=True)
    with pytest.raises(InvalidArgument, match="names 'nope'"):
        match_columns(guesses, KIND, given={"nope": "oil"}, units={})


def test_parquet_numbers_as_times_and_nulls(tmp_path):
    path = tmp_path / "n.parquet"
    table = pa.table(
        {
            "ts": pa.array([1_767_225_600_000, None, 1_767_225_602_000], pa.int64()),
            "oil": pa.array(["1.5", "2", "warm"]),
            "stage": pa.array([1, None, 3], pa.int32()),
        }
    )
    pq.write_table(table, path)
    kinds = {"oil": ChannelKind.GAUGE, "stage": ChannelKind.STATE}
    found = first_table(ParquetSource(path), Reading(kinds=kinds))
    assert found.time_meaning == "ms since 1970"
    assert found.frame["oil"].tolist()[0] == 1.5
    assert [(b.line, b.column) for b in found.broken] == [(2, "ts"), (3, "oil")]
    assert found.frame["stage"].tolist() == [1.0, 3.0]
