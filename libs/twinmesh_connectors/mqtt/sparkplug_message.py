"""The Sparkplug B payload as a protobuf message, built at run time from the field numbers that its specification fixes.

Source: Eclipse Sparkplug specification 3.0, chapter 6 "Payloads". Only what a host application reads is declared; the
rest (data sets, templates) stays among the unknown fields.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F: Final = descriptor_pb2.FieldDescriptorProto
_PACKAGE: Final = "twinmesh_connectors.sparkplug"


def _message(
    file: descriptor_pb2.FileDescriptorProto, name: str, fields: list[tuple[str, int, Any]], one_of: str = ""
) -> None:
    message = file.message_type.add(name=name)
    if one_of:
        message.oneof_decl.add(name=one_of)
    for field_name, number, kind in fields:
        field = message.field.add(name=field_name, number=number, label=_F.LABEL_OPTIONAL)
        if isinstance(kind, str):
            repeated = kind.startswith("*")
            if repeated:
                field.label = _F.LABEL_REPEATED
            field.type = _F.TYPE_MESSAGE
            field.type_name = f".{_PACKAGE}.{kind.removeprefix('*')}"
        elif isinstance(kind, tuple):
            field.label, field.type = _F.LABEL_REPEATED, kind[0]
        else:
            field.type = kind
        if one_of and field_name.endswith("_value"):
            field.oneof_index = 0


def _build() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto2")
    _message(
        file,
        "PropertyValue",
        [
            ("type", 1, _F.TYPE_UINT32),
            ("is_null", 2, _F.TYPE_BOOL),
            ("int_value", 3, _F.TYPE_UINT32),
            ("long_value", 4, _F.TYPE_UINT64),
            ("float_value", 5, _F.TYPE_FLOAT),
            ("double_value", 6, _F.TYPE_DOUBLE),
            ("boolean_value", 7, _F.TYPE_BOOL),
            ("string_value", 8, _F.TYPE_STRING),
        ],
        one_of="value",
    )
    _message(file, "PropertySet", [("keys", 1, (_F.TYPE_STRING,)), ("values", 2, "*PropertyValue")])
    _message(
        file,
        "Metric",
        [
            ("name", 1, _F.TYPE_STRING),
            ("alias", 2, _F.TYPE_UINT64),
            ("timestamp", 3, _F.TYPE_UINT64),
            ("datatype", 4, _F.TYPE_UINT32),
            ("is_historical", 5, _F.TYPE_BOOL),
            ("is_transient", 6, _F.TYPE_BOOL),
            ("is_null", 7, _F.TYPE_BOOL),
            ("properties", 9, "PropertySet"),
            ("int_value", 10, _F.TYPE_UINT32),
            ("long_value", 11, _F.TYPE_UINT64),
            ("float_value", 12, _F.TYPE_FLOAT),
            ("double_value", 13, _F.TYPE_DOUBLE),
            ("boolean_value", 14, _F.TYPE_BOOL),
            ("string_value", 15, _F.TYPE_STRING),
            ("bytes_value", 16, _F.TYPE_BYTES),
        ],
        one_of="value",
    )
    _message(
        file,
        "Payload",
        [("timestamp", 1, _F.TYPE_UINT64), ("metrics", 2, "*Metric"), ("seq", 3, _F.TYPE_UINT64)],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]  # the stubs differ between releases
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Payload"))  # type: ignore[no-untyped-call]  # ships no types for it


Payload: Final = _build()
"""Class of the payload message."""
