"""Page sizes and the opaque tokens by which a list goes on."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from twinmesh_core.errors import invalid_field

_ID_BEYOND_ALL: Final = (1 << 63) - 1


def page_size(asked: int, *, default: int, most: int) -> int:
    """Return the size of a page; 0 = the default.

    Raises:
        InvalidArgument: negative, or more than `most`.
    """
    if asked < 0 or asked > most:
        raise invalid_field("page_size", f"must be 1 to {most}, or 0 for {default}")
    return asked or default


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What later pages of a list hold to.

    Attributes:
        as_of: offset that the first page reflected.
        incarnation: the log's that it is of.
        newest_id: highest id of what the first page could list.
        asked: the filter of the request, that of every page must be the same.
    """

    as_of: int
    incarnation: str
    newest_id: int
    asked: tuple[Any, ...]


def names_token(first: str, second: str) -> str:
    """Return the token of a list by two names that goes on after these."""
    return _token([first, second])


def names_after(token: str) -> tuple[str, str]:
    """Return after which two names a list goes on; an empty token = from the beginning.

    Raises:
        InvalidArgument: not a token of this list.
    """
    if not token:
        return "", ""
    content = _content(token)
    if isinstance(content, list) and len(content) == 2 and all(_is_name(part) for part in content):
        return content[0], content[1]
    raise _bad_token()


def series_token(after: tuple[str, str], pin: Pin) -> str:
    """Return the token of a list by twin and channel that goes on after these."""
    return _token([list(after), pin.as_of, pin.newest_id, pin.incarnation, list(pin.asked)])


def series_after(token: str, asked: tuple[Any, ...]) -> tuple[tuple[str, str], Pin | None]:
    """Return after which twin and channel a list goes on, and its pin; an empty token = from the beginning, unpinned.

    Raises:
        InvalidArgument: not a token of this list, or of another filter.
    """
    if not token:
        return ("", ""), None
    after, pin = _pinned(token, asked)
    if isinstance(after, list) and len(after) == 2 and all(_is_name(part) for part in after):
        return (after[0], after[1]), pin
    raise _bad_token()


def id_token(last_id: int, pin: Pin) -> str:
    """Return the token of a list by id that goes on after this one."""
    return _token([last_id, pin.as_of, pin.newest_id, pin.incarnation, list(pin.asked)])


def id_mark(token: str, asked: tuple[Any, ...]) -> tuple[int, Pin | None]:
    """Return the last id of the page before, and the list's pin; an empty token = from the beginning, unpinned.

    Raises:
        InvalidArgument: not a token of this list, or of another filter.
    """
    if not token:
        return 0, None
    last_id, pin = _pinned(token, asked)
    if _is_id(last_id):
        return last_id, pin
    raise _bad_token()


def _pinned(token: str, asked: tuple[Any, ...]) -> tuple[Any, Pin]:
    content = _content(token)
    if not isinstance(content, list) or len(content) != 5 or not all(map(_is_id, content[1:3])):
        raise _bad_token()
    position, as_of, newest_id, incarnation, filter_ = content
    if not isinstance(incarnation, str):
        raise _bad_token()
    if filter_ != list(asked):
        raise invalid_field("page_token", "is of a list with another filter; leave the other fields as they were")
    return position, Pin(as_of=as_of, incarnation=incarnation, newest_id=newest_id, asked=asked)


def _is_id(part: object) -> bool:
    return type(part) is int and 0 <= part <= _ID_BEYOND_ALL


def _is_name(part: object) -> bool:
    return isinstance(part, str) and part.isprintable()


def _token(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def _content(token: str) -> Any:
    try:
        return json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, binascii.Error, RecursionError):
        raise _bad_token() from None


def _bad_token() -> Exception:
    return invalid_field("page_token", "is not a token of this list; take it from the previous answer, unchanged")
