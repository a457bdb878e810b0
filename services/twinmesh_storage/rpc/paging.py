"""Page sizes and the opaque tokens by which a list goes on."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from twinmesh_core.errors import invalid_field

_ID_BEYOND_ALL = (1 << 63) - 1


def page_size(asked: int, *, default: int, most: int) -> int:
    """Return the size of a page; 0 = the default.

    Raises:
        InvalidArgument: negative, or more than `most`.
    """
    if asked < 0 or asked > most:
        raise invalid_field("page_size", f"must be 1 to {most}, or 0 for {default}")
    return asked or default


def names_token(twin_id: str, channel: str) -> str:
    """Return the token of a list by twin and channel that goes on after these."""
    return _token([twin_id, channel])


def names_after(token: str) -> tuple[str, str]:
    """Return after which twin and channel a list goes on; an empty token = from the beginning.

    Raises:
        InvalidArgument: not a token of this list.
    """
    if not token:
        return "", ""
    content = _content(token)
    if isinstance(content, list) and len(content) == 2 and all(_is_name(part) for part in content):
        return content[0], content[1]
    raise _bad_token()


def id_token(last_id: int) -> str:
    """Return the token of a list by descending id that goes on below this one."""
    return _token(last_id)


def id_before(token: str) -> int:
    """Return below which id a list goes on; an empty token = from the newest.

    Raises:
        InvalidArgument: not a token of this list.
    """
    if not token:
        return _ID_BEYOND_ALL
    content = _content(token)
    if type(content) is int and 0 <= content <= _ID_BEYOND_ALL:
        return content
    raise _bad_token()


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
