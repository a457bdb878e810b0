"""What goes wrong before a mesh is even asked, and how every error is told to a person or a program."""

from __future__ import annotations

import json
import sys
from typing import Any

from twinmesh_core.errors import Reason, TwinmeshError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """The command cannot be meant as it was typed; the text says what would be right."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class CommandFailedError(Exception):
    """The command was understood and could not be done; the text says why and what to type next."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def tell(message: str, *, reason: str = "", remedy: str = "", as_json: bool = False, **facts: Any) -> None:
    """Write one error to standard error."""
    if as_json:
        body = {"message": message, "reason": reason, "remedy": remedy, **facts}
        sys.stderr.write(json.dumps({"error": {k: v for k, v in body.items() if v}}, ensure_ascii=False) + "\n")
        return
    sys.stderr.write(f"error: {message}{f' [{reason}]' if reason else ''}\n")
    if remedy:
        sys.stderr.write(f"  -> {remedy}\n")


def tell_mesh_error(error: TwinmeshError, *, as_json: bool) -> None:
    """Write what a mesh or the SDK answered."""
    message = error.message
    fields = {v.field: v.description for v in error.field_violations}
    if not as_json:
        message += "".join(f"\n  {field}: {text}" for field, text in fields.items() if text not in message)
    remedy = error.metadata.get("remedy", "")
    tell(
        message,
        reason="" if error.reason == Reason.UNSPECIFIED else str(error.reason),
        remedy=remedy if as_json or remedy not in message else "",
        as_json=as_json,
        code=error.code,
        fields=fields,
        metadata={k: v for k, v in error.metadata.items() if k != "remedy"},
        retry_after_s=error.retry_after_s,
    )
