"""What an attacker has: every method of every service from the descriptors, nasty messages, and an eye for leaks."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import descriptor, message_factory
from google.protobuf.message import Message
from google.rpc import status_pb2

from twinmesh.inference.v1 import inference_pb2
from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.mesh.v1 import mesh_pb2
from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.training.v1 import training_pb2
from twinmesh_client.rpc_status import error_from_rpc
from twinmesh_core.errors import Reason, TwinmeshError

FILES: Final = {
    "ingestion": ingestion_pb2.DESCRIPTOR,
    "storage": storage_pb2.DESCRIPTOR,
    "statesync": statesync_pb2.DESCRIPTOR,
    "training": training_pb2.DESCRIPTOR,
    "inference": inference_pb2.DESCRIPTOR,
}
FORBIDDEN: Final = {"UNKNOWN", "INTERNAL", "DATA_LOSS"}
LEAKS: Final = re.compile(
    r"Traceback|\b\w*(?:Error|Exception)\(|\bError:|object at 0x|<class|\.py\b|/(?:usr|home|tmp|root|work|var)/|"
    r"\bpsycopg|\bpostgres(?:ql)?://|\bSELECT\b.*\bFROM\b|\bINSERT INTO\b|\bduplicate key\b|\bviolates\b|\brelation \"|"
    r"\bNoneType\b|\bnumpy\b|\basyncio\b|\bgrpc\.|\bpb2\b|incident",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One method of one service."""

    token: str
    path: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool


def every_rpc() -> list[Rpc]:
    """Return all methods of all services, the mesh service of each included."""
    found = []
    for token, file in FILES.items():
        services = [*file.services_by_name.values(), *mesh_pb2.DESCRIPTOR.services_by_name.values()]
        for service in services:
            for method in service.methods:
                found.append(
                    Rpc(
                        token=token,
                        path=f"/{service.full_name}/{method.name}",
                        request=message_factory.GetMessageClass(method.input_type),
                        response=message_factory.GetMessageClass(method.output_type),
                        client_streaming=method.client_streaming,
                        server_streaming=method.server_streaming,
                    )
                )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a call ended: its code, and the error of our tree unless it went well."""

    code: str
    error: TwinmeshError | None
    answers: tuple[Any, ...]
    raw_status: str


async def throw(
    channel: grpc.aio.Channel, rpc: Rpc, raw: bytes, *, timeout_s: float = 10.0, answers: int = 1, metadata: Any = ()
) -> Ended:
    """Send bytes to a method; of a stream, read at most so many answers. What is sent need not be a message."""
    kind = f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}"
    method = getattr(channel, kind)(rpc.path, request_serializer=None, response_deserializer=rpc.response.FromString)
    call = method(_once(raw) if rpc.client_streaming else raw, timeout=timeout_s, metadata=metadata)
    got: list[Any] = []
    try:
        if rpc.server_streaming:
            async for answer in call:
                got.append(answer)
                if len(got) >= answers:
                    break
        else:
            got.append(await call)
    except grpc.RpcError as failure:
        code = failure.code().name  # type: ignore[attr-defined]  # of AioRpcError
        return Ended(code=code, error=error_from_rpc(failure), answers=tuple(got), raw_status=_words(failure))
    finally:
        call.cancel()
    return Ended(code="OK", error=None, answers=tuple(got), raw_status="")


def faults_of(ended: Ended) -> list[str]:
    """Return what is wrong with the way a call ended: a defect of ours, a leak, or an error without reason."""
    faults = []
    if ended.code in FORBIDDEN:
        faults.append(f"ended with {ended.code}")
    leak = LEAKS.search(ended.raw_status)
    if leak is not None:
        faults.append(f"leaks {leak.group()!r}")
    if ended.error is not None and ended.error.reason == Reason.UNSPECIFIED:
        faults.append("has no reason")
    return [f"{fault}: {ended.raw_status[:400]}" for fault in faults]


async def _once(raw: bytes) -> Any:
    yield raw


def _words(failure: Any) -> str:
    """Return every word of a failed call that a caller can see."""
    words = [failure.details() or ""]
    for key, value in failure.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            words.append(str(status_pb2.Status.FromString(value)))
        else:
            words.append(f"{key}={value!r}")
    return "\n".join(words)


_NASTY_TEXT: Final = (
    "", "x", "T1", "default", "\0", "a\0b", "ü" * 40, "x" * 5_000, "../../etc/passwd", "'; DROP TABLE x; --", "%s{}",
    "*", " ", "a b", "-", "\U0001f600", "1", "00000000-0000-0000-0000-000000000000", "Europe/Berlin", "Mars/Base",
)  # fmt: skip
_NASTY_INT: Final = (0, 1, -1, 2, 7, 1_000, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32, 10**15)
_NASTY_DOUBLE: Final = (0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 0.5)
_NASTY_BYTES: Final = (b"", b"\0", b"\xff" * 16, b"\x08\x01", b"x" * 3_000)


def nasty_messages(kind: type[Message], seed: int, count: int) -> Iterator[bytes]:
    """Yield legal encodings of a message filled with values that nobody expects."""
    chance = random.Random(seed)  # noqa: S311  repeatable, not a secret
    for _ in range(count):
        message = kind()
        _fill(message, chance, depth=0)
        yield message.SerializeToString()


def random_bytes(seed: int, count: int) -> Iterator[bytes]:
    """Yield bytes that are a message only by accident."""
    chance = random.Random(seed)  # noqa: S311  repeatable, not a secret
    for size in (1, 2, 3, 17, 200, 5_000):
        for _ in range(count):
            yield chance.randbytes(size)


def _fill(message: Any, chance: random.Random, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if chance.random() < (0.35 if depth < 2 else 0.5):
            continue
        if field.is_repeated:
            _fill_many(message, field, chance, depth)
        elif field.type == descriptor.FieldDescriptor.TYPE_MESSAGE:
            if depth < 5:
                getattr(message, field.name).SetInParent()
                _fill(getattr(message, field.name), chance, depth + 1)
        else:
            setattr(message, field.name, _nasty(field, chance))


def _fill_many(message: Any, field: Any, chance: random.Random, depth: int) -> None:
    entry = field.message_type
    values = getattr(message, field.name)
    for _ in range(chance.choice((0, 1, 2, 3))):
        if entry is not None and entry.GetOptions().map_entry:
            key = _nasty(entry.fields_by_name["key"], chance)
            of = entry.fields_by_name["value"]
            if of.message_type is None:
                values[key] = _nasty(of, chance)
            else:
                _fill(values[key], chance, depth + 1)
        elif entry is not None:
            if depth < 5:
                _fill(values.add(), chance, depth + 1)
        else:
            values.append(_nasty(field, chance))


def _nasty(field: Any, chance: random.Random) -> Any:
    kinds = descriptor.FieldDescriptor
    match field.cpp_type:
        case kinds.CPPTYPE_STRING:
            return chance.choice(_NASTY_BYTES if field.type == kinds.TYPE_BYTES else _NASTY_TEXT)
        case kinds.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case kinds.CPPTYPE_DOUBLE | kinds.CPPTYPE_FLOAT:
            return chance.choice(_NASTY_DOUBLE)
        case kinds.CPPTYPE_ENUM:
            return chance.choice([*(v.number for v in field.enum_type.values), 99])
        case kinds.CPPTYPE_INT32:
            return chance.choice([n for n in _NASTY_INT if -(2**31) <= n < 2**31])
        case kinds.CPPTYPE_UINT32:
            return chance.choice((0, 1, 3, 2**32 - 1))
        case kinds.CPPTYPE_UINT64:
            return chance.choice((0, 1, 2**64 - 1))
        case _:
            return chance.choice(_NASTY_INT)


def mutations(message: Message) -> Iterator[tuple[str, bytes]]:
    """Yield copies of a valid message, each with one field changed, removed, doubled or made absurd: (path, bytes)."""
    kind = type(message)
    for path, change in _changes(message, ""):
        copy = kind.FromString(message.SerializeToString(deterministic=True))
        try:
            change(copy)
        except (ValueError, TypeError):
            continue  # this field cannot even be given that value
        yield path, copy.SerializeToString()


def _changes(message: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, change) for every field below; a change is applied to a copy of the whole message."""
    for field in message.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        steps = tuple(path.split("."))
        if field.is_repeated:
            yield from _changes_of_many(message, field, path, steps)
        elif field.type == descriptor.FieldDescriptor.TYPE_MESSAGE:
            if message.HasField(field.name):
                yield f"{path} removed", lambda m, s=steps: _owner(m, s).ClearField(s[-1])
                yield from _changes(getattr(message, field.name), f"{path}.")
            else:
                yield f"{path} empty", lambda m, s=steps: getattr(_owner(m, s), s[-1]).SetInParent()
        else:
            for value in _absurd(field):
                yield f"{path}={value!r:.40}", lambda m, s=steps, v=value: setattr(_owner(m, s), s[-1], v)


def _changes_of_many(message: Any, field: Any, path: str, steps: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    values = getattr(message, field.name)
    yield f"{path} removed", lambda m: _owner(m, steps).ClearField(steps[-1])
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        if of.message_type is not None:
            for key in _NASTY_TEXT:
                yield f"{path}[{key!r:.20}]", lambda m, k=key: getattr(_owner(m, steps), steps[-1])[k].SetInParent()
        for key in list(values) if of.message_type is not None else ():
            for inner in of.message_type.fields:
                for value in _absurd(inner):
                    yield (
                        f"{path}[{key}].{inner.name}={value!r:.40}",
                        lambda m, k=key, n=inner.name, v=value: setattr(getattr(_owner(m, steps), steps[-1])[k], n, v),
                    )
    elif field.message_type is not None:
        yield f"{path} one empty", lambda m: getattr(_owner(m, steps), steps[-1]).add()
        if values:
            yield (
                f"{path} doubled",
                lambda m: getattr(_owner(m, steps), steps[-1]).extend(list(getattr(_owner(m, steps), steps[-1]))),
            )
            yield from _changes(values[0], f"{path}.0.")
    else:
        for value in _absurd(field):
            yield f"{path}+{value!r:.40}", lambda m, v=value: getattr(_owner(m, steps), steps[-1]).append(v)
            yield f"{path}={value!r:.40}", lambda m, v=value: _only(getattr(_owner(m, steps), steps[-1]), v)
        if values:
            yield (
                f"{path} doubled",
                lambda m: getattr(_owner(m, steps), steps[-1]).extend(list(getattr(_owner(m, steps), steps[-1]))),
            )


def _only(values: Any, value: Any) -> None:
    del values[:]
    values.append(value)


def _owner(message: Any, steps: tuple[str, ...]) -> Any:
    for step in steps[:-1]:
        message = message[int(step)] if step.isdigit() else getattr(message, step)
    return message


def _absurd(field: Any) -> tuple[Any, ...]:
    kinds = descriptor.FieldDescriptor
    match field.cpp_type:
        case kinds.CPPTYPE_MESSAGE:
            return ()
        case kinds.CPPTYPE_STRING:
            return _NASTY_BYTES if field.type == kinds.TYPE_BYTES else _NASTY_TEXT
        case kinds.CPPTYPE_BOOL:
            return (False, True)
        case kinds.CPPTYPE_DOUBLE | kinds.CPPTYPE_FLOAT:
            return _NASTY_DOUBLE
        case kinds.CPPTYPE_ENUM:
            return (*(v.number for v in field.enum_type.values), 99, -1)
        case kinds.CPPTYPE_INT32:
            return tuple(n for n in _NASTY_INT if -(2**31) <= n < 2**31)
        case kinds.CPPTYPE_UINT32:
            return (0, 1, 3, 2**32 - 1)
        case kinds.CPPTYPE_UINT64:
            return (0, 1, 2**64 - 1)
        case _:
            return _NASTY_INT
