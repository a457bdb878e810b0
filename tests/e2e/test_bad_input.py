"""What the mesh answers to everything that it should not be sent: field, reason and remedy; and it stays up."""

# mypy: disable-error-code="arg-type, list-item, attr-defined"
# Why: messages are built from dicts, and wrong ones on purpose: the stubs know neither.

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.e2e import attack, valid
from tests.e2e.shared_mesh import make_world, running_mesh

from twinmesh.inference.v1 import inference_pb2 as inference
from twinmesh.ingestion.v1 import ingestion_pb2 as ingestion
from twinmesh.statesync.v1 import statesync_pb2 as statesync
from twinmesh.storage.v1 import storage_pb2 as storage
from twinmesh.training.v1 import training_pb2 as training
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.aio.mesh import Mesh, connect_async
from twinmesh_client.transport import tenant_metadata
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_local.mesh import LocalMesh

pytestmark = pytest.mark.timeout(120)
THOROUGH = os.environ.get("TWINMESH_LAWS") == "thorough"
"""Set by `make test-all`: three times as many attacks."""
EVERY = 5 if THOROUGH else 15
RPCS = {rpc.path.rsplit(".", 1)[-1]: rpc for rpc in attack.every_rpc()}
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    # Checkpoints often: what none can hold shows itself at once.
    often = {"TWINMESH_STATESYNC_CHECKPOINT_INTERVAL_S": "1"}
    with running_mesh(tmp_path_factory.mktemp("mesh"), environment=often) as mesh:
        asyncio.run(make_world(mesh))
        yield mesh


@pytest.fixture(autouse=True)
def nothing_died(mesh: LocalMesh) -> Iterator[None]:
    yield
    assert {s.name: s.restarts for s in mesh.status() if s.restarts} == {}, "a server ended and was started again"


@pytest.fixture
async def client(mesh: LocalMesh) -> AsyncIterator[Mesh]:
    async with connect_async(mesh.endpoints["inference"]) as client:
        yield client


@asynccontextmanager
async def asking(mesh: LocalMesh) -> AsyncIterator[Any]:
    """Return a function that sends a message to a method by its name and tells how that ended."""
    channels = {token: grpc.aio.insecure_channel(target) for token, target in mesh.endpoints.items()}

    async def ask(name: str, message: Any, **options: Any) -> attack.Ended:
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        return await attack.throw(channels[RPCS[name].token], RPCS[name], raw, **options)

    try:
        yield ask
    finally:
        for channel in channels.values():
            await channel.close()


def as_whom(name: str) -> Any:
    """Return metadata of a caller whom this method does not send away before it looks at the request."""
    return tenant_metadata("default") if name.endswith("/RegisterCheckpoint") else None


async def refused(ask: Any, name: str, message: Any, code: str, reason: str, *words: str) -> TwinmeshError:
    """Ask, and hold that it is refused with this code and reason and that the message holds the words."""
    ended = await ask(name, message)
    assert ended.error is not None, f"{name} was accepted"
    assert (ended.code, ended.error.reason) == (code, reason), str(ended.error)
    for word in words:
        assert word in str(ended.error)
    assert attack.faults_of(ended) == []
    return ended.error


# --- every method ---


@pytest.mark.parametrize("token", list(attack.FILES))
async def test_no_bytes_find_a_defect(mesh: LocalMesh, token: str) -> None:
    faults: list[str] = []
    refusals = 0
    async with grpc.aio.insecure_channel(mesh.endpoints[token]) as channel:
        for rpc in (r for r in attack.every_rpc() if r.token == token):
            for raw in (*attack.random_bytes(7, 1), *attack.nasty_messages(rpc.request, 7, 12 if THOROUGH else 4)):
                ended = await attack.throw(channel, rpc, raw)
                refusals += ended.error is not None
                faults += [f"{rpc.path}: {fault}" for fault in attack.faults_of(ended)]
    assert faults == []
    assert refusals > 10


@pytest.mark.parametrize("token", list(attack.FILES))
async def test_no_absurd_field_finds_a_defect(mesh: LocalMesh, token: str) -> None:
    bounded = asyncio.Semaphore(4)
    faults: list[str] = []
    async with grpc.aio.insecure_channel(mesh.endpoints[token]) as channel:

        async def attempt(name: str, path: str, raw: bytes) -> None:
            async with bounded:
                ended = await attack.throw(channel, RPCS[name], raw, metadata=as_whom(name))
            faults.extend(f"{name} {path}: {fault}" for fault in attack.faults_of(ended))

        async with asyncio.TaskGroup() as group:
            for name, request in valid.requests().items():
                if RPCS[name].token != token or name in ("CommandService/FollowCommands", "ReplicaService/Watch"):
                    continue  # those wait for news; `test_positions...` attacks them
                for number, (path, raw) in enumerate(attack.mutations(request)):
                    if number % EVERY == 0 or re.search(r"x00|removed|empty|9223372036854775807", path):
                        group.create_task(attempt(name, path, raw))
    assert faults == []


async def test_the_valid_requests_are_valid(mesh: LocalMesh) -> None:
    """The attacks change one field of these: they must pass as they are, or be refused only for what is not there."""
    assert set(valid.requests()) == set(RPCS)
    async with asking(mesh) as ask:
        for name, request in valid.requests().items():
            if as_whom(name) is not None:
                assert (await ask(name, request)).code == "PERMISSION_DENIED", name  # for services alone
            ended = await ask(name, request, metadata=as_whom(name))
            assert (
                ended.code == "OK"
                or "LOG_REWOUND" in str(ended.error)
                or "NOT_FOUND" in str(ended.error)
                or "COMPACTED" in str(ended.error)
            ), f"{name}: {ended.error}"


async def test_no_entry_of_the_log_stops_state_sync(mesh: LocalMesh) -> None:
    async with asking(mesh) as ask:
        appended = 0
        for entry in valid.control_entries():
            base = storage.AppendRequest(control=entry)
            for number, (path, raw) in enumerate(attack.mutations(base)):
                if number % EVERY == 0 or "x00" in path or "nan" in path or "9223372036854775807" in path:
                    appended += (await ask("StorageService/Append", raw)).code == "OK"
        assert appended > 60
        await asyncio.sleep(2.5)  # two checkpoints
        head = (await ask("StorageService/GetHead", storage.GetHeadRequest())).answers[0].position.offset
        replica = await ask("ReplicaService/GetReplica", statesync.GetReplicaRequest(twin_id="P1", min_offset=head))
        assert replica.code == "OK"
        for name in ("CommandService/ListCommands", "EventService/ListEvents", "TwinService/ListTwins"):
            request = RPCS[name].request()
            if not name.startswith("Twin"):
                request.twin_id = "P1"
            assert (await ask(name, request)).code == "OK"


# --- writing ---


def one(channel: str, value: float = 20.0, *, time_us: int = 0, unit: str = "", twin: str = "P1") -> ObservationBatch:
    at = time_us or int(time.time() * 1e6)
    return ObservationBatch(
        series=(SeriesKey(twin_id=twin, channel=channel, unit=unit),), doubles=double_section([0], [at], [value])
    )


@pytest.mark.parametrize(
    ("batch", "backfill", "reason", "words"),
    [
        (one("pressure"), False, "unknown_channel", "temp"),
        (one("temp", unit="kPa"), False, "incompatible_unit", "Cel"),
        (one("temp", unit="nonsense"), False, "incompatible_unit", "nonsense"),
        (one("temp", float("nan")), False, "not_finite", "leave missing values out"),
        (one("temp", float("inf")), False, "not_finite", "leave missing values out"),
        (one("temp", time_us=int(time.time() * 1e6) + 3 * DAY_US), False, "time_in_future", "set the sender's clock"),
        (one("temp", time_us=int(time.time() * 1e9)), True, "time_in_future", "microseconds since 1970"),
        (one("temp", time_us=1), False, "time_in_past", "backfill"),
        (one("temp", time_us=-1), True, "time_in_past", "before 1970"),
        (one("label"), False, "wrong_kind", "texts"),
    ],
)
async def test_a_bad_row_is_kept_aside_with_its_remedy(
    client: Mesh, batch: ObservationBatch, backfill: bool, reason: str, words: str
) -> None:
    ack = await client.twins["P1"].write_batch(batch, backfill=backfill)
    assert (ack.accepted, ack.quarantined) == (0, 1)
    kept = (await client.quarantine(reason=reason, limit=1)).rows[0]
    assert kept.twin_id == "P1"
    assert words in kept.message
    assert batch.series[0].channel in kept.message


async def test_an_unknown_twin_names_the_command_that_creates_it(client: Mesh) -> None:
    ack = await client.twins["P7"].write_batch(one("temp", twin="P7"))
    assert (ack.accepted, ack.quarantined) == (0, 1)
    message = (await client.quarantine(twin_id="P7")).rows[0].message
    printed = re.search(r"`twinmesh twins create (\S+) --type (\S+)`", message)
    assert printed is not None, message
    assert printed.group(1) == "P7"
    await client.twins.create(printed.group(1), type="pump@1")
    assert (await client.twins["P7"].write_batch(one("temp", twin="P7"))).accepted == 1


async def test_batches_that_cannot_be_read(mesh: LocalMesh) -> None:
    async with asking(mesh) as ask:
        name = "IngestionService/Write"
        unequal = ingestion.WriteRequest(batch=valid.batch())
        del unequal.batch.doubles.value[1:]
        await refused(ask, name, unequal, "INVALID_ARGUMENT", "UNEQUAL_COLUMNS", "batch.doubles", "value 1")
        empty = ingestion.WriteRequest(batch=observation_pb2.ObservationBatch())
        await refused(ask, name, empty, "INVALID_ARGUMENT", "INVALID_FIELD", "batch", "at least one")
        await refused(ask, name, ingestion.WriteRequest(), "INVALID_ARGUMENT", "INVALID_FIELD", "batch")
        await refused(ask, name, b"\xff" * 40, "INVALID_ARGUMENT", "MALFORMED_MESSAGE", "protos")
        large = ingestion.WriteRequest(batch={"texts": {"heap": b"x" * (13 << 20)}})
        await refused(ask, name, large, "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", "limit", "send less")
        huge = ingestion.WriteRequest(batch={"texts": {"heap": b"x" * (17 << 20)}})
        ended = await ask(name, huge)
        assert ended.code == "RESOURCE_EXHAUSTED"
        assert (await ask(name, ingestion.WriteRequest(batch=valid.batch()))).code == "OK"


async def test_request_ids_are_for_one_content(mesh: LocalMesh) -> None:
    async with asking(mesh) as ask:
        first = ingestion.WriteRequest(batch=valid.batch(), request_id="reused")
        done = await ask("IngestionService/Write", first)
        again = await ask("IngestionService/Write", first)
        assert again.answers[0].ack.replayed
        assert again.answers[0].ack.offset == done.answers[0].ack.offset
        first.batch.doubles.value[0] += 1
        await refused(ask, "IngestionService/Write", first, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", "new one")
        for name, request, change in (
            ("CommandService/SendCommand", valid.requests()["CommandService/SendCommand"], {"name": "set_stage"}),
            ("EventService/RecordEvent", valid.requests()["EventService/RecordEvent"], {}),
        ):
            request.request_id = f"reused-{name.rsplit('/', 1)[-1]}"  # type: ignore[attr-defined]  # both have it
            assert (await ask(name, request)).code == "OK"
            assert (await ask(name, request)).code == "OK"
            if change:
                request.name = change["name"]  # type: ignore[attr-defined]
            else:
                request.event.message = "other"  # type: ignore[attr-defined]
            await refused(ask, name, request, "INVALID_ARGUMENT", "REQUEST_ID_REUSED")


class Producer:
    """A producer session by hand."""

    def __init__(self, channel: grpc.aio.Channel, producer_id: str) -> None:
        self._producer_id = producer_id
        self._call = channel.stream_stream(
            RPCS["IngestionService/WriteStream"].path,
            request_serializer=ingestion.WriteStreamRequest.SerializeToString,
            response_deserializer=ingestion.WriteStreamResponse.FromString,
        )()

    async def open(self) -> Any:
        await self._call.write(ingestion.WriteStreamRequest(hello={"producer_id": self._producer_id}))
        return (await self._call.read()).welcome

    async def send(self, sequence: int, batch: observation_pb2.ObservationBatch) -> Any:
        await self._call.write(ingestion.WriteStreamRequest(batch={"sequence": sequence, "batch": batch}))
        answer = await self._call.read()
        if answer is grpc.aio.EOF:
            raise AssertionError(await self._call.details())
        return answer.ack

    async def fails(self, sequence: int, batch: observation_pb2.ObservationBatch) -> tuple[str, str, str]:
        """Return code, reason and message with which the session ends."""
        await self._call.write(ingestion.WriteStreamRequest(batch={"sequence": sequence, "batch": batch}))
        try:
            await self._call.read()
        except grpc.aio.AioRpcError as failure:
            error = attack.error_from_rpc(failure)
            return failure.code().name, error.reason, str(error)
        raise AssertionError("the batch was accepted")


async def test_producers_that_replay_skip_or_are_fenced(mesh: LocalMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.endpoints["ingestion"]) as channel:
        first, second = valid.batch(), valid.batch()
        second.doubles.value[0] += 5
        producer = Producer(channel, "prod")
        assert (await producer.open()).last_sequence == 0
        one_ack = (await producer.send(1, first)).ack
        two_ack = (await producer.send(2, second)).ack
        last_again = (await producer.send(2, second)).ack
        assert last_again.replayed
        assert (last_again.offset, last_again.accepted_count) == (two_ack.offset, two_ack.accepted_count)
        older = (await producer.send(1, first)).ack
        assert older.replayed
        assert one_ack.offset < two_ack.offset
        code, reason, text = await producer.fails(4, first)
        assert (code, reason) == ("FAILED_PRECONDITION", "SEQUENCE_GAP")
        assert "3" in text

        old = Producer(channel, "prod")
        assert (await old.open()).last_sequence == 2
        assert (await old.fails(2, first))[:2] == ("INVALID_ARGUMENT", "SEQUENCE_REUSED")

        old = Producer(channel, "prod")
        old_epoch = (await old.open()).epoch
        new = Producer(channel, "prod")
        assert (await new.open()).epoch > old_epoch
        assert (await old.fails(3, first))[:2] == ("FAILED_PRECONDITION", "PRODUCER_FENCED")
        assert (await new.send(3, first)).sequence == 3


# --- taking away ---


async def test_what_cannot_be_taken_away(mesh: LocalMesh, client: Mesh) -> None:
    """Of a twin that there is, every field of DeleteRange and EraseTwin made absurd; then what is refused by name."""
    await client.twins.create("gone", type="pump@1", if_absent=True)
    await client.twins["gone"].write_batch(one("temp", twin="gone"))
    delete, erase = "StorageService/DeleteRange", "StorageService/EraseTwin"
    now = int(time.time())
    whole = storage.DeleteRangeRequest(
        request_id="g", series=[{"twin_id": "gone", "channel": "temp"}], twin_ids=["gone"],
        start_time=Timestamp(seconds=now - 3_600), end_time=Timestamp(seconds=now),
    )  # fmt: skip
    faults: list[str] = []
    async with asking(mesh) as ask:
        for name, request in ((delete, whole), (erase, storage.EraseTwinRequest(request_id="h", twin_id="gone"))):
            for path, raw in attack.mutations(request):
                faults += [f"{name} {path}: {fault}" for fault in attack.faults_of(await ask(name, raw))]
        assert faults == []
        invalid = ("INVALID_ARGUMENT", "INVALID_FIELD")
        for field, fields in (
            ("request_id", {"twin_ids": ["gone"]}),
            ("series", {"request_id": "i"}),
            ("twin_ids", {"request_id": "i", "twin_ids": ["gone"] * 1_001}),
            ("end_time", {"request_id": "i", "twin_ids": ["gone"], "start_time": {"seconds": 9}, "end_time": {}}),
        ):
            await refused(ask, delete, storage.DeleteRangeRequest(**fields), *invalid, field)
        unheard = storage.DeleteRangeRequest(request_id="i", twin_ids=["nobody-at-all"])
        await refused(ask, delete, unheard, "NOT_FOUND", "CHANNEL_NOT_FOUND", "nobody-at-all")
        rows = await ask("StorageService/ReadLatest", storage.ReadLatestRequest(twin_ids=["P1"]))
        assert len(rows.answers[0].batch.series) >= 3, "what nobody named is gone"


# --- lists, positions ---


async def test_page_tokens_of_nothing_or_of_another_list(mesh: LocalMesh) -> None:
    lists = {name: request for name, request in valid.requests().items() if hasattr(request, "page_token")}
    assert len(lists) == 11
    async with asking(mesh) as ask:
        for name, request in lists.items():
            for token in ("garbage", "!!", "AAAA", "WyJhXHUwMDAwIiwiYiJd", "eyJhIjoxfQ==", "x" * 3_000):
                request.page_token = token  # type: ignore[attr-defined]
                await refused(ask, name, request, "INVALID_ARGUMENT", "INVALID_FIELD", "page_token")
            request.page_token = ""  # type: ignore[attr-defined]
            for size in (-1, 2**31 - 1):
                request.page_size = size  # type: ignore[attr-defined]
                ended = await ask(name, request)
                assert attack.faults_of(ended) == []
                assert size > 0 or ended.code == "INVALID_ARGUMENT"
        await ask("IngestionService/Write", ingestion.WriteRequest(batch=valid.batch()))
        series = await ask("StorageService/ListSeries", storage.ListSeriesRequest(page_size=1))
        token = series.answers[0].next_page_token
        assert token
        other = storage.ListQuarantineRequest(page_token=token)
        await refused(ask, "StorageService/ListQuarantine", other, "INVALID_ARGUMENT", "INVALID_FIELD", "page_token")
        twins = statesync.ListTwinsRequest(page_token=token)
        await refused(ask, "TwinService/ListTwins", twins, "INVALID_ARGUMENT", "INVALID_FIELD", "page_token")


async def test_positions_that_are_not_of_this_log(mesh: LocalMesh) -> None:
    future = 10**15
    async with asking(mesh) as ask:
        async with asyncio.TaskGroup() as group:  # each waits a while for the offset to arrive
            for name, request in valid.requests().items():
                if hasattr(request, "min_offset"):
                    request.min_offset = future
                    group.create_task(refused(ask, name, request, "OUT_OF_RANGE", "FUTURE_OFFSET", str(future)))
        for name, field in (("ReplicaService/Watch", "resume_after"), ("StorageService/Follow", "after")):
            for offset, incarnation, code, reason in (
                (future, "", "OUT_OF_RANGE", "FUTURE_OFFSET"),
                (1, "not-this-log", "FAILED_PRECONDITION", "LOG_REWOUND"),
                (-1, "", "INVALID_ARGUMENT", "INVALID_FIELD"),
            ):
                request = RPCS[name].request()
                getattr(request, field).offset = offset
                getattr(request, field).incarnation = incarnation
                await refused(ask, name, request, code, reason)
        for bad in (-1, future):
            window = valid.requests()["StorageService/ReadWindow"]
            window.as_of_offset = bad  # type: ignore[attr-defined]
            assert (await ask("StorageService/ReadWindow", window)).code in ("INVALID_ARGUMENT", "OUT_OF_RANGE")


# --- directing ---


@pytest.mark.parametrize(
    ("values", "code", "reason", "words"),
    [
        ({"temp": valid.value(20)}, "FAILED_PRECONDITION", "NOT_CONTROLLABLE", ("temp", "setpoint")),
        ({"none": valid.value(20)}, "NOT_FOUND", "CHANNEL_NOT_FOUND", ("none", "setpoint")),
        ({"setpoint": observation_pb2.Value(text_value="hot")}, "INVALID_ARGUMENT", "INVALID_FIELD", ("a number",)),
        ({"setpoint": valid.value(101)}, "INVALID_ARGUMENT", "INVALID_FIELD", ("from 0 to 100", "setpoint")),
        ({"setpoint": valid.value(float("nan"))}, "INVALID_ARGUMENT", "INVALID_FIELD", ("finite",)),
        ({"stage": valid.value(1.5)}, "INVALID_ARGUMENT", "INVALID_FIELD", ("whole number",)),
        ({"stage": valid.stage(9)}, "INVALID_ARGUMENT", "INVALID_FIELD", ("from 0 to 3",)),
        ({"stage": observation_pb2.Value()}, "INVALID_ARGUMENT", "INVALID_FIELD", ("no value",)),
        ({"doc": observation_pb2.Value(json_value="[" * 90_000)}, "INVALID_ARGUMENT", "INVALID_FIELD", ("JSON",)),
        ({}, "INVALID_ARGUMENT", "INVALID_FIELD", ("at least one",)),
    ],
)
async def test_targets_that_cannot_be(mesh: LocalMesh, values: Any, code: str, reason: str, words: Any) -> None:
    async with asking(mesh) as ask:
        request = statesync.SetDesiredRequest(twin_id="P1", values=values)
        await refused(ask, "ReplicaService/SetDesired", request, code, reason, *words)


async def test_a_stale_condition_is_told_the_current_revision(mesh: LocalMesh) -> None:
    async with asking(mesh) as ask:
        request = statesync.SetDesiredRequest(twin_id="P1", values={"setpoint": valid.value(20)}, if_revision=10**6)
        error = await refused(ask, "ReplicaService/SetDesired", request, "ABORTED", "REVISION_CONFLICT")
        assert error.metadata["current_revision"].isdigit()


async def test_commands_that_cannot_be(mesh: LocalMesh) -> None:
    async with asking(mesh) as ask:
        send, invalid = "CommandService/SendCommand", ("INVALID_ARGUMENT", "INVALID_FIELD")
        missing = statesync.SendCommandRequest(twin_id="P1", name="restart")
        await refused(ask, send, missing, *invalid, "args", "reason")
        unknown = statesync.SendCommandRequest(twin_id="P1", name="explode")
        await refused(ask, send, unknown, *invalid, "explode", "set_stage, restart")
        nobody = statesync.SendCommandRequest(twin_id="nobody", name="restart")
        await refused(ask, send, nobody, "NOT_FOUND", "TWIN_NOT_FOUND", "twinmesh twins create nobody")
        sent = await ask(send, valid.requests()[send])
        ids = {"twin_id": "P1", "command_id": sent.answers[0].command.command_id}
        done = statesync.AcknowledgeCommandRequest(**ids, state="COMMAND_STATE_SUCCEEDED")
        assert (await ask("CommandService/AcknowledgeCommand", done)).code == "OK"
        failed = statesync.AcknowledgeCommandRequest(**ids, state="COMMAND_STATE_FAILED")
        await refused(
            ask, "CommandService/AcknowledgeCommand", failed, "FAILED_PRECONDITION", "COMMAND_STATE", "SUCCEEDED"
        )
        cancel = statesync.CancelCommandRequest(**ids)
        await refused(ask, "CommandService/CancelCommand", cancel, "FAILED_PRECONDITION", "COMMAND_STATE", "SUCCEEDED")


# --- learning and predicting ---


async def test_forecasts_that_cannot_be(mesh: LocalMesh, client: Mesh) -> None:
    await client.twins.create("bare", type="pump@1", if_absent=True)
    await client.twins["bare"].write_batch(one("temp", twin="bare"))
    async with asking(mesh) as ask:
        for fields, code, reason in (
            ({"twin_id": "P1", "channel": "load"}, "NOT_FOUND", "MODEL_NOT_FOUND"),
            ({"twin_id": "P1", "channel": "temp", "model_id": "no-model"}, "NOT_FOUND", "MODEL_NOT_FOUND"),
            ({"twin_id": "nobody", "channel": "temp"}, "NOT_FOUND", "TWIN_NOT_FOUND"),
            ({"twin_id": "P1", "channel": "nothing"}, "NOT_FOUND", "CHANNEL_NOT_FOUND"),
            ({"twin_id": "bare", "channel": "temp"}, "FAILED_PRECONDITION", "NOT_ENOUGH_HISTORY"),
            ({"twin_id": "P1", "channel": "temp", "quantile_levels": [0.33]}, "INVALID_ARGUMENT", "INVALID_FIELD"),
            (
                {"twin_id": "P1", "channel": "temp", "horizon": Duration(seconds=-1)},
                "INVALID_ARGUMENT",
                "INVALID_FIELD",
            ),
            (
                {"twin_id": "P1", "channel": "temp", "horizon": Duration(seconds=10**9)},
                "INVALID_ARGUMENT",
                "INVALID_FIELD",
            ),
        ):
            ended = await ask("InferenceService/Forecast", inference.ForecastRequest(**fields))
            assert ended.error is not None, fields
            assert (ended.code, ended.error.reason) == (code, reason), f"{fields}: {ended.error}"


async def test_plans_over_settings_that_the_model_never_saw(mesh: LocalMesh) -> None:
    async with asking(mesh) as ask:
        request = valid.requests()["InferenceService/Optimize"]
        assert (await ask("InferenceService/Optimize", request)).code == "OK"
        request.options[3].value = 9.0  # type: ignore[attr-defined]
        await refused(ask, "InferenceService/Optimize", request, "INVALID_ARGUMENT", "INVALID_FIELD", "options[3]", "9")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model_id", {"model_id": "No Good"}),
        ("task", {"task": 0}),
        ("twin_ids", {"twin_ids": []}),
        ("target", {"target": ""}),
        ("inputs[1]", {"inputs": ["load", "No Good"]}),
        ("step", {"step": Duration()}),
        ("context_steps", {"context_steps": 0}),
        ("horizon_steps", {"horizon_steps": -3}),
        ("quantile_levels", {"quantile_levels": [0.9, 0.5]}),
        ("end_time", {"end_time": Timestamp(seconds=1)}),
        ("holdout", {"holdout": Duration(seconds=1)}),
        ("holdout", {"holdout": Duration(seconds=10**12)}),
        ("season", {"season": Duration(seconds=-5)}),
        ("time_budget", {"time_budget": Duration(seconds=10**7)}),
        ("origins", {"origins": -1}),
    ],
)
async def test_a_spec_is_refused_by_the_name_of_its_field(mesh: LocalMesh, field: str, change: Any) -> None:
    spec = valid.spec("m-never")
    for name, wrong in change.items():
        spec.ClearField(name)
        spec.MergeFrom(training.TrainingSpec(**{name: wrong}))
    request = training.CreateTrainingRunRequest(spec=spec)
    if field == "step":
        request.spec.step.SetInParent()
    async with asking(mesh) as ask:
        ended = await ask("TrainingService/CreateTrainingRun", request)
        assert ended.code == "INVALID_ARGUMENT", ended
        assert ended.error is not None
        assert any(v.field.startswith(f"spec.{field.split('[')[0]}") for v in ended.error.field_violations)


# --- tenants ---


async def test_a_tenant_never_sees_another(mesh: LocalMesh) -> None:
    """Every read of tenant `other` that names P1, its model or its run finds nothing, and no list shows them."""
    metadata = tenant_metadata("other")
    reads = re.compile(r"/(Get|List|Read|Aggregate|Downsample|Forecast|Optimize|DownloadArtifact|Watch|Follow)")
    async with asking(mesh) as ask:
        mine = await ask("TrainingService/ListTrainingRuns", training.ListTrainingRunsRequest(page_size=1))
        run_id = mine.answers[0].runs[0].run_id
        for name, request in valid.requests().items():
            if not reads.search(name) or name == "MeshService/GetMesh":
                continue
            for field in ("min_offset", "resume_after", "after"):
                if field in request.DESCRIPTOR.fields_by_name:
                    request.ClearField(field)  # type: ignore[arg-type]
            if "run_id" in request.DESCRIPTOR.fields_by_name:
                request.run_id = run_id  # type: ignore[attr-defined]
            for sent in (request, RPCS[name].request()):
                ended = await ask(name, sent, metadata=metadata, timeout_s=1.0, answers=3)
                shown = b"".join(a.SerializeToString() for a in ended.answers)
                for secret in (b"P1", b"pump", b"m-forecast", run_id.encode(), b"bearing"):
                    assert secret not in shown, f"{name} shows {secret!r}"
                assert attack.faults_of(ended) == []
        for name, request in (
            ("CommandService/SendCommand", valid.requests()["CommandService/SendCommand"]),
            ("ReplicaService/SetDesired", valid.requests()["ReplicaService/SetDesired"]),
            ("TrainingService/CancelTrainingRun", training.CancelTrainingRunRequest(run_id=run_id)),
            ("ModelService/PromoteModelVersion", valid.requests()["ModelService/PromoteModelVersion"]),
            ("TwinService/DeleteTwin", statesync.DeleteTwinRequest(twin_id="P1")),
        ):
            assert (await ask(name, request, metadata=metadata)).code == "NOT_FOUND", name
        removal = storage.DeleteRangeRequest(request_id="d", twin_ids=["P1"])
        assert (await ask("StorageService/DeleteRange", removal, metadata=metadata)).code == "NOT_FOUND"
        # What `other` asked of P1 is in the log under its own tenant: that much can be erased, and no more.
        erase = storage.EraseTwinRequest(request_id="e", twin_id="P1")
        latest = storage.ReadLatestRequest(twin_ids=["P1"])
        before = await ask("StorageService/ReadLatest", latest)
        assert (await ask("StorageService/EraseTwin", erase, metadata=metadata)).code in ("OK", "NOT_FOUND")
        after = await ask("StorageService/ReadLatest", latest)
        assert before.answers[0].batch.doubles.value
        assert after.answers[0].batch == before.answers[0].batch
        await ask("IngestionService/Write", ingestion.WriteRequest(batch=valid.batch_of("P7")))
        for name, request in (
            ("IngestionService/ReplayQuarantine", ingestion.ReplayQuarantineRequest(request_id="q")),
            (
                "IngestionService/DiscardQuarantine",
                ingestion.DiscardQuarantineRequest(request_id="q2", filter={"twin_id": "P7"}, comment="not mine"),
            ),
        ):
            ended = await ask(name, request, metadata=metadata)
            taken = {field.name for field, _ in ended.answers[0].ListFields()} - {"ack", "offset"}
            assert (ended.code, taken) == ("OK", set()), name
        rule = storage.SetRetentionRequest(rule={"twin_id": "P1", "keep": Duration(seconds=60)})
        assert (await ask("StorageService/SetRetention", rule, metadata=metadata)).code == "OK"
        mine = await ask("StorageService/ListRetention", storage.ListRetentionRequest())
        assert "P1" not in [r.twin_id for r in mine.answers[0].rules]
        written = await ask("IngestionService/Write", ingestion.WriteRequest(batch=valid.batch()), metadata=metadata)
        assert written.answers[0].ack.accepted_count == 0
        body = observation_pb2.ObservationBatch(
            series=[{"twin_id": "P1", "channel": "temp", "unit": "Cel", "series_id": 1, "kind": 1}],
            doubles={"series": [0], "time_unix_us": [1], "quality": b"\1", "value": [1.0]},
        )
        forged = storage.AppendRequest(observations=body.SerializeToString())
        assert (await ask("StorageService/Append", forged, metadata=metadata)).code == "INVALID_ARGUMENT"
        for tenant in ("Bad Tenant", "../x", ""):
            ended = await ask("StorageService/GetHead", storage.GetHeadRequest(), metadata=tenant_metadata(tenant))
            assert ended.code == "INVALID_ARGUMENT"
