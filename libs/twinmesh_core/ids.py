"""The ids that callers choose: what they may look like, and the error that says so."""

from __future__ import annotations

import re
from typing import Final

from twinmesh_core.errors import FieldViolation, invalid_field

MAX_REQUEST_ID_LENGTH: Final = 128
"""Longest accepted `request_id`, in characters."""

_ENTITY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESOURCE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CLASS: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")

_ENTITY_RULE: Final = "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit"
_RESOURCE_RULE: Final = "1 to 128 lower-case letters, digits, '.', '_' or '-', starting with a letter or digit"
_NAME_RULE: Final = "1 to 63 lower-case letters, digits or '_', starting with a letter"
_CLASS_RULE: Final = "1 to 63 lower-case letters, digits, '_' or '-', starting with a letter; empty = none"


def entity_id_violation(field: str, text: str) -> FieldViolation | None:
    """Return what is wrong with an id of an entity (twin, producer), or None.

    Entities bring their names from outside, so capitals are allowed.
    """
    return _violation(_ENTITY, _ENTITY_RULE, field, text)


def resource_id_violation(field: str, text: str) -> FieldViolation | None:
    """Return what is wrong with an id of a resource of ours (twin type, model, run, tenant), or None."""
    return _violation(_RESOURCE, _RESOURCE_RULE, field, text)


def name_violation(field: str, text: str) -> FieldViolation | None:
    """Return what is wrong with a name inside a twin type (channel, property, command, argument), or None."""
    return _violation(_NAME, _NAME_RULE, field, text)


def retention_class_violation(field: str, text: str) -> FieldViolation | None:
    """Return what is wrong with the name of a class of retention, or None; "" is none and right."""
    return _violation(_CLASS, _CLASS_RULE, field, text) if text else None


def require_twin_id(text: str, field: str = "twin_id") -> str:
    """Return `text` if it is a well-formed twin id.

    Raises:
        InvalidArgument: reason INVALID_FIELD, naming the field and the rule.
    """
    return _required(entity_id_violation(field, text), text)


def require_producer_id(text: str, field: str = "producer_id") -> str:
    """Return `text` if it is a well-formed producer id; raises `InvalidArgument` otherwise."""
    return _required(entity_id_violation(field, text), text)


def require_resource_id(text: str, field: str) -> str:
    """Return `text` if it is a well-formed id of a twin type, model, run or tenant; else raises `InvalidArgument`."""
    return _required(resource_id_violation(field, text), text)


def require_name(text: str, field: str) -> str:
    """Return `text` if it is a well-formed channel, property or command name; raises `InvalidArgument` otherwise."""
    return _required(name_violation(field, text), text)


def require_retention_class(text: str, field: str) -> str:
    """Return `text` if it is empty or the well-formed name of a class; raises `InvalidArgument` otherwise."""
    return _required(retention_class_violation(field, text), text)


def require_request_id(text: str, field: str = "request_id") -> str:
    """Return `text` if it can be an idempotency key; empty means "none" and is returned as it is.

    Raises:
        InvalidArgument: longer than `MAX_REQUEST_ID_LENGTH`, or with characters that cannot be printed.
    """
    if len(text) > MAX_REQUEST_ID_LENGTH or not text.isprintable():
        raise invalid_field(field, f"must be at most {MAX_REQUEST_ID_LENGTH} printable characters")
    return text


def quoted(text: str, limit: int = 80) -> str:
    """Return `text` in quotes for an error message: shortened, and with control characters made visible."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "'" + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown) + "'"


def _violation(pattern: re.Pattern[str], rule: str, field: str, text: str) -> FieldViolation | None:
    if pattern.fullmatch(text):
        return None
    found = f"{quoted(text)} is not allowed" if text else "is required"
    return FieldViolation(field=field, description=f"{found}: {rule}")


def _required(violation: FieldViolation | None, text: str) -> str:
    if violation is not None:
        raise invalid_field(violation.field, violation.description)
    return text
