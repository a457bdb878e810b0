"""One value as plain Python: what a channel, a property or an argument may hold."""

from __future__ import annotations


class Json(str):
    """A JSON document as its text, told apart from plain text by its type."""

    __slots__ = ()


Value = float | int | bool | str | Json
"""Numbers are `float` or `int`, truth values `bool`, texts `str`, documents `Json`; the type says which."""


def is_number(value: object) -> bool:
    """Whether a value is a number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_value(left: Value, right: Value) -> bool:
    """Whether two values are equal and of the same type: 1, 1.0 and true are three values."""
    return type(left) is type(right) and left == right
