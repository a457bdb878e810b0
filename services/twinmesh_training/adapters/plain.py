"""The domain's frozen values as plain JSON and back: what the registry keeps in its documents.

Fields are told by the dataclasses themselves, so a field added with a default reads old documents as well.
"""

from __future__ import annotations

import dataclasses
import types
from enum import IntEnum
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

ValueT = TypeVar("ValueT")


def to_plain(value: Any) -> Any:
    """Return a dataclass, tuple, enum, number, text or None as JSON values; NaN and infinity become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):
        return None
    return value


def from_plain(kind: type[ValueT], plain: Any) -> ValueT:
    """Return the dataclass that `to_plain` made this of; unknown keys are left out, a None number is NaN."""
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
    known = {name: _read(hint, plain[name]) for name, hint in hints.items() if name in plain}
    return kind(**known)


@lru_cache(maxsize=64)
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, plain: Any) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        return tuple(_read(get_args(hint)[0], item) for item in plain)
    if origin in {Union, types.UnionType}:
        inner = next(argument for argument in get_args(hint) if argument is not types.NoneType)
        return None if plain is None else _read(inner, plain)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, plain)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return hint(plain)
    if hint is float:
        return float("nan") if plain is None else float(plain)
    return plain
