"""As much of etcd's v3 API as a put, a conditional put and a watch need, built without its files.

Field numbers are those of etcd's public ``rpc.proto`` and ``kv.proto`` (API 3.4); nothing else of them is used.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PUT: Final = "/etcdserverpb.KV/Put"
TXN: Final = "/etcdserverpb.KV/Txn"
WATCH: Final = "/etcdserverpb.Watch/Watch"

_BYTES: Final = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
_INT64: Final = descriptor_pb2.FieldDescriptorProto.TYPE_INT64
_BOOL: Final = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL

_MESSAGES: Final[dict[str, dict[str, tuple[int, Any, bool]]]] = {
    # name of the field: number, type (or the message's name), repeated
    "KeyValue": {"key": (1, _BYTES, False), "mod_revision": (3, _INT64, False), "value": (5, _BYTES, False)},
    "Event": {"kv": (2, "KeyValue", False)},
    "Header": {"revision": (3, _INT64, False)},
    "PutRequest": {"key": (1, _BYTES, False), "value": (2, _BYTES, False)},
    "PutResponse": {"header": (1, "Header", False)},
    # result 0 is EQUAL, target 2 is MOD: both as numbers, which is how enums travel.
    "Compare": {
        "result": (1, _INT64, False),
        "target": (2, _INT64, False),
        "key": (3, _BYTES, False),
        "mod_revision": (6, _INT64, False),
    },
    "RequestOp": {"request_put": (2, "PutRequest", False)},
    "TxnRequest": {"compare": (1, "Compare", True), "success": (2, "RequestOp", True)},
    "TxnResponse": {"header": (1, "Header", False), "succeeded": (2, _BOOL, False)},
    "WatchCreateRequest": {"key": (1, _BYTES, False), "range_end": (2, _BYTES, False)},
    "WatchRequest": {"create_request": (1, "WatchCreateRequest", False)},
    "WatchResponse": {"created": (3, _BOOL, False), "events": (11, "Event", True)},
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="benchmarks_etcd.proto", package="benchmarks.etcd", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".benchmarks.etcd.{kind}"
            else:
                added.type = kind
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"benchmarks.etcd.{name}"))
        for name in _MESSAGES
    }


messages: Final = _classes()
"""The message classes by name."""
