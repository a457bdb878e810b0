"""What a spool was told to keep is there after any kill, in order, whole; what is not whole is found out and named."""

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinmesh_client.spool.records import HEAD_BYTES
from twinmesh_client.spool.spool import Batch, Cursor, Spool
from twinmesh_client.spool.state import State
from twinmesh_core.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable


def batch(text: str, points: int = 1, *, backfill: bool = False) -> Batch:
    return Batch(body=text.encode(), points=points, backfill=backfill)


def read_all(spool: Spool, start: int = 1, max_bytes: int = 1) -> list[tuple[int, str]]:
    """Everything from a number on, read in small steps."""
    cursor = Cursor(start)
    found: list[tuple[int, str]] = []
    while True:
        records, cursor = spool.read(cursor, max_bytes)
        if not records:
            return found
        found += [(record.number, record.body.decode()) for record in records]


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "spool"


def opened(directory, **options) -> Spool:
    return Spool(directory, "p", **options)


def filled(directory, texts, **options) -> None:
    spool = opened(directory, **options)
    for text in texts:
        spool.append([batch(text)])
    spool.close()


def segments(directory):
    return sorted(directory.glob("*.spool"))


def test_what_is_appended_is_read_back_in_order_by_the_next_process(directory):
    spool = opened(directory)
    assert spool.append([batch("a", 3), batch("b", 4, backfill=True)]) == 1
    assert spool.append([batch("c")]) == 3
    spool.close()
    again = opened(directory)
    records, cursor = again.read(Cursor(1), 1_000)
    assert [(r.number, r.body, r.points, r.backfill) for r in records] == [
        (1, b"a", 3, False),
        (2, b"b", 4, True),
        (3, b"c", 1, False),
    ]
    assert again.read(cursor, 1_000)[0] == []
    assert again.append([batch("d")]) == 4
    assert read_all(again, 3) == [(3, "c"), (4, "d")]
    again.close()


def test_a_batch_cut_short_at_any_byte_is_cut_off_and_all_before_it_is_there(directory, tmp_path):
    filled(directory, ["one", "two", "three"])
    (path,) = segments(directory)
    whole = path.read_bytes()
    two_ends = len(whole) - len("three") - HEAD_BYTES
    for size in range(two_ends, len(whole)):
        path.write_bytes(whole[:size])
        spool = opened(directory)
        assert read_all(spool) == [(1, "one"), (2, "two")]
        assert spool.cut_bytes == size - two_ends
        assert spool.state.lost == []
        assert spool.append([batch("new")]) == 3
        assert read_all(spool, 2) == [(2, "two"), (3, "new")]
        spool.close()


def test_any_flipped_byte_is_found_named_and_passed_over(directory):
    texts = [f"batch {i}" for i in range(5)]
    filled(directory, texts)
    (path,) = segments(directory)
    whole = path.read_bytes()
    size = len(whole) // 5
    for position in range(len(whole)):
        for file in directory.iterdir():
            file.unlink()
        filled(directory, [])
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        spool = opened(directory)
        hit = position // size + 1
        assert read_all(spool) == [(i + 1, text) for i, text in enumerate(texts) if i + 1 != hit]
        assert spool.state.lost == [(hit, hit)]
        # The number of the damaged one is not given to another.
        assert spool.append([batch("next")]) == 6
        assert read_all(spool, 6) == [(6, "next")]
        spool.close()
        again = opened(directory)
        assert again.state.lost == [(hit, hit)]
        again.close()


def test_damage_within_a_file_that_is_no_longer_written(directory):
    filled(directory, [f"{i:100}" for i in range(20)], segment_bytes=500)
    first, *_, last = segments(directory)
    assert len(segments(directory)) == 5
    first.write_bytes(b"\0" * first.stat().st_size)
    cut = last.with_name(segments(directory)[2].name)
    cut.write_bytes(cut.read_bytes()[:-1])
    spool = opened(directory)
    numbers = [number for number, _ in read_all(spool, max_bytes=250)]
    per_file = 4
    assert numbers == [n for n in range(1, 21) if n > per_file and n != 3 * per_file]
    assert spool.state.lost == [(1, per_file), (3 * per_file, 3 * per_file)]
    spool.close()


def test_files_are_removed_when_the_mesh_has_all_that_is_in_them(directory):
    filled(directory, [f"{i:100}" for i in range(20)], segment_bytes=500)
    spool = opened(directory, segment_bytes=500)
    before = spool.size
    spool.release(3)
    assert (spool.first_number, spool.size) == (1, before)
    spool.release(9)
    assert (spool.first_number, len(segments(directory))) == (9, 3)
    assert [number for number, _ in read_all(spool, 9)] == list(range(9, 21))
    spool.release(20)
    # Nothing is left but an empty file that says where numbers go on.
    assert (spool.size, spool.first_number, len(segments(directory))) == (0, 21, 1)
    spool.close()
    again = opened(directory)
    assert again.append([batch("x")]) == 21
    again.close()


def test_acknowledged_batches_are_kept_up_to_a_bound(directory):
    filled(directory, [f"{i:100}" for i in range(20)], segment_bytes=500)
    spool = opened(directory, segment_bytes=500, keep_bytes=1_100)
    spool.release(20)
    assert (spool.first_number, spool.size) == (13, 1_024)
    spool.close()


def test_one_process_at_a_time(directory):
    script = (
        "import sys; from pathlib import Path; from twinmesh_client.spool.spool import Spool\n"
        f"spool = Spool(Path({str(directory)!r}), 'p'); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(FailedPrecondition, match=f"process {other.pid}") as caught:
            opened(directory)
        assert caught.value.metadata["pid"] == str(other.pid)
        other.kill()
        other.wait()
        # The lock ends with its process, however that ended.
        opened(directory).close()
        other.stdin.close()


def test_a_spool_belongs_to_one_producer(directory):
    filled(directory, ["a"])
    with pytest.raises(FailedPrecondition, match="'p'"):
        Spool(directory, "q")


def test_a_damaged_state_file_is_refused(directory):
    spool = opened(directory)
    spool.adopt(41)
    spool.close()
    path = directory / "state.json"
    path.write_text(path.read_text().replace("41", "42"))
    with pytest.raises(DataLoss, match="state file"):
        opened(directory)


def test_an_emptied_directory_begins_anew(directory):
    spool = opened(directory)
    spool.append([batch("a")])
    spool.adopt(41)
    spool.close()
    for path in segments(directory):
        path.unlink()
    again = opened(directory)
    assert (again.state.base, again.next_number) == (None, 1)
    again.close()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EIO, Unavailable), (errno.EDQUOT, ResourceExhausted)]
)
@pytest.mark.parametrize("call", ["writev", "fdatasync"])
def test_a_disk_that_fails_takes_nothing_and_leaves_nothing_half_written(directory, monkeypatch, number, kind, call):
    spool = opened(directory)
    spool.append([batch("a")])
    real = getattr(os, call)

    def fail(fd, *parts):
        if parts:
            real(fd, [memoryview(parts[0][0])[:7]])
        raise OSError(number, "sorry")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind, match="nothing was taken"):
        spool.append([batch("b"), batch("c")])
    monkeypatch.undo()
    assert spool.append([batch("d")]) == 2
    assert read_all(spool) == [(1, "a"), (2, "d")]
    spool.close()


def test_writing_goes_on_where_the_system_took_a_part_only(directory, monkeypatch):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [bytes(parts[0])[:5]]))
    spool = opened(directory)
    spool.append([batch("abcdefghij"), batch("k")])
    assert read_all(spool) == [(1, "abcdefghij"), (2, "k")]
    spool.close()


def test_a_body_that_looks_like_a_record_is_no_record(directory):
    spool = opened(directory)
    spool.append([batch("inner")])
    spool.close()
    inner = segments(directory)[0].read_bytes()
    for file in directory.iterdir():
        file.unlink()
    spool = opened(directory)
    spool.append([batch("a"), Batch(body=inner + inner, points=1, backfill=False), batch("c")])
    spool.close()
    path = segments(directory)[0]
    data = bytearray(path.read_bytes())
    data[HEAD_BYTES + 1] ^= 1  # the head of the second
    path.write_bytes(data)
    spool = opened(directory)
    assert read_all(spool) == [(1, "a"), (3, "c")]
    spool.close()


ranges = st.lists(st.integers(1, 40), max_size=8)


@given(base=st.integers(0, 5), lost=ranges)
def test_numbers_and_sequences_map_to_each_other(base, lost):
    """Whole numbers have dense sequences; a sequence stands for its number and the lost ones right after it."""
    state = State(producer_id="p", base=base)
    for number in lost:
        state.lose(number, number)
    assert state.lost_count == len(set(lost))
    assert all(b + 1 < c for (_, b), (c, _) in zip(state.lost, state.lost[1:], strict=False))
    whole = [n for n in range(1, 60) if n not in lost]
    assert [state.sequence_of(n) for n in whole] == list(range(base + 1, base + len(whole) + 1))
    for i, number in enumerate(whole[:-1], start=1):
        assert state.number_of(base + i) == whole[i] - 1
        assert state.sequence_of(state.number_of(base + i)) == base + i
        assert number <= state.number_of(base + i)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_spool_is_a_queue_whatever_happens_to_it(data, tmp_path_factory):
    """Against a list: appends, reads, releases, reopenings and torn ends, in any order."""
    directory = tmp_path_factory.mktemp("queue") / "spool"
    spool = opened(directory, fsync=False, segment_bytes=300)
    model: list[str] = []
    released = 0
    for step in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["append", "append", "release", "reopen", "tear", "read"]))
        if action == "append":
            texts = [f"{step}-{i}" * (i + 1) for i in range(data.draw(st.integers(1, 4)))]
            assert spool.append([batch(text) for text in texts]) == len(model) + 1
            model += texts
        elif action == "release":
            released = data.draw(st.integers(released, len(model)))
            spool.release(released)
            assert spool.first_number <= released + 1
        elif action == "read":
            start = data.draw(st.integers(released + 1, len(model) + 1))
            assert read_all(spool, start, data.draw(st.integers(1, 200))) == [
                (i, model[i - 1]) for i in range(start, len(model) + 1)
            ]
        else:
            spool.close()
            if action == "tear":
                # A process that is killed while it appends leaves a beginning of that.
                with segments(directory)[-1].open("ab") as file:
                    file.write(b"tmr1" + data.draw(st.binary(max_size=HEAD_BYTES - 5)))
            spool = opened(directory, fsync=False, segment_bytes=300)
    assert [text for _, text in read_all(spool, released + 1)] == model[released:]
    assert spool.state.lost == []
    spool.close()


def test_the_state_is_replaced_at_once(directory, monkeypatch):
    spool = opened(directory)
    spool.adopt(5)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        spool.adopt(6)
    monkeypatch.undo()
    spool.close()
    again = opened(directory)
    assert again.state.base == 5
    again.close()
