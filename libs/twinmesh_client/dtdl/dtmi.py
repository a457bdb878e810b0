"""Digital twin model identifiers: their grammar, and how ids of twin types become them and come back.

Source: *DTDL Language Specification, Version 3*, section Digital Twin Model Identifier.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

MAX_INTERFACE_ID: Final = 128
MAX_ID: Final = 2_048
MAX_VERSION: Final = 999_999_999
RESERVED: Final = ("dtmi:dtdl:", "dtmi:standard:")
OURS: Final = "dtmi:twinmesh:"
"""Prefix of the identifiers of our own types."""

_SEGMENT: Final = r"[A-Za-z](?:[A-Za-z0-9_]*[A-Za-z0-9])?"
_DTMI: Final = re.compile(
    rf"dtmi:(?P<path>{_SEGMENT}(?::{_SEGMENT})*)(?:;(?P<major>[1-9][0-9]{{0,8}})(?:\.(?P<minor>[1-9][0-9]{{0,5}}))?)?"
)
_NAME: Final = re.compile(_SEGMENT)
_MAX_OUR_ID: Final = 128


def dtmi_fault(text: object, *, interface: bool = False) -> str:
    """Return what is wrong with an identifier; "" = nothing."""
    if not isinstance(text, str) or _DTMI.fullmatch(text) is None:
        return (
            f"{text!r} is no DTMI (dtmi:<segment>:<segment>;<version>; segments of letters, digits, inner underscores)"
        )
    if text.startswith(RESERVED):
        return f"{text!r} has a prefix that DTDL reserves for itself"
    longest = MAX_INTERFACE_ID if interface else MAX_ID
    return f"is {len(text)} characters long, at most {longest} are allowed" if len(text) > longest else ""


def name_fault(text: object) -> str:
    """Return what is wrong with the name of a content or field; "" = nothing."""
    if not isinstance(text, str) or _NAME.fullmatch(text) is None or len(text) > 512:
        return f"{text!r} is no name: at most 512 letters, digits and inner underscores, a letter first"
    return ""


def version_of(dtmi: str) -> tuple[int, int]:
    """Return major and minor version of a valid DTMI; (0, 0) = it states none."""
    found = _DTMI.fullmatch(dtmi)
    if found is None:
        return 0, 0
    return int(found["major"] or 0), int(found["minor"] or 0)


def type_id_of(dtmi: str) -> str:
    """Return the id of the twin type that a valid DTMI names: its path in lower case, joined by dots.

    Our own identifiers lose their prefix, so that ``dtmi:twinmesh:pump;2`` is the type ``pump``.
    """
    found = _DTMI.fullmatch(dtmi)
    path = found["path"] if found is not None else dtmi
    text = path.replace(":", ".").lower()
    text = text.removeprefix("twinmesh.") if dtmi.startswith(OURS) else text
    if len(text) <= _MAX_OUR_ID:
        return text
    digest = blake2b(text.encode(), digest_size=6).hexdigest()
    return f"{text[: _MAX_OUR_ID - 13]}.{digest}"


def dtmi_of(type_id: str, version: int) -> str:
    """Return a DTMI for a version of a twin type; what would fall together otherwise is told apart by a hash."""
    path = ":".join(_segment(part) for part in type_id.split(".") if part)
    ending = f";{min(version, MAX_VERSION)}"
    made = f"{OURS}{path}{ending}"
    if version > MAX_VERSION or type_id_of(f"{OURS}{path}") != type_id or len(made) > MAX_INTERFACE_ID:
        named = type_id if version <= MAX_VERSION else f"{type_id}@{version}"
        digest = blake2b(named.encode(), digest_size=6).hexdigest()
        path = path[: MAX_INTERFACE_ID - len(OURS) - len(ending) - 15].rstrip(":_")
        made = f"{OURS}{path}:x{digest}{ending}"
    return made


def _segment(text: str) -> str:
    plain = re.sub(r"[^a-z0-9_]", "_", text).rstrip("_") or "x"
    return plain if plain[0].isalpha() else f"x{plain}"


def snake(name: str) -> str:
    """Return a DTDL name as a name of ours: ``batteryLevel`` becomes ``battery_level``; at most 63 characters."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    if len(text) > 63:
        text = f"{text[:50]}_{blake2b(name.encode(), digest_size=6).hexdigest()}"
    return text
