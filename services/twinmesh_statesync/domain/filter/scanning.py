"""The pieces of a filter's text, handed out one by one as the parser expects them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.filter.errors import FilterError
from twinmesh_statesync.domain.filter.expressions import KEYWORDS, Op

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_OPERATOR: Final = re.compile(r"!=|<=|>=|=|<|>|:")
_BARE: Final = re.compile(r"[^\s()'\"\\=<>!,]+")
"""A value without quotes. Colons and dots are part of it, so that a time needs no quotes."""


@dataclass(frozen=True, slots=True)
class Text:
    """A value as it stands there.

    Attributes:
        column: where it begins, from 1.
        pieces: its text, cut at each wildcard.
        quoted: whether it stood in quotes, and so is a text whatever it looks like.
    """

    column: int
    pieces: tuple[str, ...]
    quoted: bool

    @property
    def raw(self) -> str:
        """The text with its wildcards, for messages and for what is no text."""
        return "*".join(self.pieces)


class Scanner:
    """A place in a text.

    Args:
        text: the filter.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def column(self) -> int:
        """The place of the next piece, from 1."""
        return self._skip() + 1

    @property
    def rest(self) -> str:
        """What is left."""
        return self._text[self._skip() :]

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self._skip() == len(self._text)

    def keyword(self, *wanted: str) -> str:
        """Take the next word if it is one of `wanted`; "" otherwise."""
        found = _NAME.match(self._text, self._skip())
        if found is None or found[0] not in wanted:
            return ""
        self._at = found.end()
        return found[0]

    def sign(self, wanted: str) -> bool:
        """Take the next character if it is `wanted`."""
        at = self._skip()
        if not self._text.startswith(wanted, at):
            return False
        self._at = at + len(wanted)
        return True

    def operator(self) -> Op | None:
        """Take the next operator."""
        found = _OPERATOR.match(self._text, self._skip())
        if found is None:
            return None
        self._at = found.end()
        return Op(found[0])

    def name(self) -> tuple[str, bool]:
        """Take a name of a path, in quotes or not; raises `FilterError` when there is none."""
        at = self._skip()
        if self._text[at : at + 1] in ('"', "'"):
            text = self.quoted_text()
            if len(text.pieces) > 1 or not text.raw:
                raise FilterError(text.column, "a name in quotes must not be empty nor hold a wildcard")
            return text.raw, True
        found = _NAME.match(self._text, at)
        if found is None or found[0] in KEYWORDS:
            raise FilterError(at + 1, f"expected a field, found {self.shown()}; e.g. attributes.site = 'north'")
        self._at = found.end()
        return found[0], False

    def value(self) -> Text:
        """Take a value; raises `FilterError` when there is none."""
        found = self.optional_value()
        if found is None:
            raise FilterError(self.column, f"expected a value, found {self.shown()}; put a text in quotes")
        return found

    def optional_value(self) -> Text | None:
        """Take the value that comes next, if one does: a word of the language is none unless quoted."""
        at = self._skip()
        if self._text[at : at + 1] in ('"', "'"):
            return self.quoted_text()
        found = _BARE.match(self._text, at)
        if found is None or found[0] in KEYWORDS:
            return None
        self._at = found.end()
        return Text(at + 1, tuple(found[0].split("*")), quoted=False)

    def quoted_text(self) -> Text:
        """Take a text in quotes; a backslash takes the next character as it is."""
        begin = at = self._skip()
        mark = self._text[at]
        pieces = [""]
        while True:
            at += 1
            char = self._text[at : at + 1]
            if char == "\\":
                at += 1
                char = self._text[at : at + 1]
                pieces[-1] += char
            elif char == mark:
                self._at = at + 1
                return Text(begin + 1, tuple(pieces), quoted=True)
            elif char == "*":
                pieces.append("")
            else:
                pieces[-1] += char
            if not char:
                raise FilterError(begin + 1, f"the text that begins here has no closing {mark}")

    def shown(self) -> str:
        """Return what comes next, for an error message."""
        rest = self.rest.split(maxsplit=1)
        return quoted(rest[0], 20) if rest else "the end"

    def _skip(self) -> int:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found is not None else self._at
        return self._at
