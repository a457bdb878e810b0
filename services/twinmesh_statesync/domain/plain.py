"""Our values as plain JSON text and back, exactly: the form of checkpoints and of the digest.

Text is canonical (sorted keys, no spaces), so equal values have equal text. Numbers come back as they went: JSON as
Python writes it keeps int and float apart and every float exact. Nothing here can run code, unlike a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from twinmesh_core.errors import ERROR_TYPES, FieldViolation, TwinmeshError
from twinmesh_statesync.domain.values import Json, Value

PlainT = TypeVar("PlainT")
_JSON_TAG: Final = "$json"
_AS_THEY_ARE: Final = frozenset({str, bool, int, float, types.NoneType})


def to_text(value: object) -> str:
    """Return the canonical JSON text of a dataclass, or of a container of them."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def from_text(kind: type[PlainT], text: str) -> PlainT:
    """Return the value of type `kind` whose `to_text` this is."""
    hint: Any = kind
    value: PlainT = _reader(hint)(json.loads(text))
    return value


def to_plain(value: Any) -> Any:
    """Return the value in JSON's own types; a mapping whose keys are not texts becomes the list of its values."""
    kind: Any = type(value)
    if kind in _AS_THEY_ARE:
        return value
    names = _names(kind)
    if names is not None:
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Json):
        return {_JSON_TAG: str(value)}
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, TwinmeshError):
        return {
            "code": value.code,
            "message": value.message,
            "reason": str(value.reason),
            "metadata": dict(value.metadata),
            "fields": [[violation.field, violation.description] for violation in value.field_violations],
            "retry_after_s": value.retry_after_s,
        }
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            return [to_plain(value[key]) for key in sorted(value)]
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    raise TypeError(f"{kind.__name__} has no plain form")


@cache
def _names(kind: Any) -> tuple[str, ...] | None:
    """Return the fields of a dataclass; None for any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    if hint == Value:
        return _read_value
    if hint == Value | None:
        return lambda data: None if data is None else _read_value(data)
    if hint is TwinmeshError:
        return _read_error
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        inner = _reader(next(argument for argument in get_args(hint) if argument is not types.NoneType))
        return lambda data: None if data is None else inner(data)
    if origin is tuple:
        item = _reader(get_args(hint)[0])
        return lambda data: tuple(item(part) for part in data)
    if origin is not None and issubclass(origin, Mapping):
        key, inner = get_args(hint)[0], _reader(get_args(hint)[1])
        if key is not str:  # predictions, kept as the list of them
            return lambda data: {(item.channel, item.model_id): item for item in map(inner, data)}
        return lambda data: {name: inner(part) for name, part in data.items()}
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    return lambda data: data


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    # A field that a checkpoint does not hold keeps its default: one added later reads from an older checkpoint.
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    return lambda data: kind(**{name: readers[name](part) for name, part in data.items() if name in readers})


def _read_value(data: Any) -> Value:
    if isinstance(data, dict):
        return Json(data[_JSON_TAG])
    found: Value = data
    return found


def _read_error(data: Any) -> TwinmeshError:
    return ERROR_TYPES.get(data["code"], TwinmeshError)(
        data["message"],
        reason=data["reason"],
        metadata=data["metadata"],
        field_violations=tuple(FieldViolation(field=name, description=text) for name, text in data["fields"]),
        retry_after_s=data["retry_after_s"],
    )
