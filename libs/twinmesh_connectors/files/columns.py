"""Which column of a file becomes which channel: guessed from titles and cells, matched with a twin's type, shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import TwinType
from twinmesh_core.units import canonical

if TYPE_CHECKING:
    import pandas as pd

_UNIT: Final = re.compile(r"^(?P<name>.*?)\s*[(\[](?P<unit>[^()\[\]]+)[)\]]\s*$")
_TRUTHS: Final = {"true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnGuess:
    """How one column is taken.

    Attributes:
        column: its title in the file.
        channel: the channel it becomes.
        kind: GAUGE for numbers, BOOL for truths, TEXT for the rest; or what the twin's type says.
        unit: UCUM code from the title's brackets; empty = none, or not understood.
        note: what was not understood, or how the channel was found.
    """

    column: str
    channel: str
    kind: ChannelKind
    unit: str
    note: str = ""


def guess_columns(frame: pd.DataFrame, *, empty_too: bool = False) -> tuple[ColumnGuess, ...]:
    """Return a guess for every column; those without a value are left out, unless they are wanted too."""
    taken: set[str] = set()
    return tuple(
        _guess(title, frame[title], taken)
        for title in map(str, frame.columns)
        if empty_too or frame[title].notna().any()
    )


def match_columns(
    guesses: Sequence[ColumnGuess],
    kind: TwinType,
    *,
    given: Mapping[str, str],
    units: Mapping[str, str],
    drop_unknown: bool = False,
) -> tuple[ColumnGuess, ...]:
    """Return the columns as channels of a twin's type.

    Args:
        guesses: of all columns that are not dropped.
        kind: the twin's type.
        given: channel by column title, where somebody said so.
        units: unit by column title or channel, likewise.
        drop_unknown: leave columns out that fit no channel, rather than refuse.

    Raises:
        InvalidArgument: a column fits no channel, or two fit the same one; names the column and what to say.
    """
    channels = {c.name: c for c in kind.channels}
    unknown = sorted(set(given) - {g.column for g in guesses})
    if unknown:
        raise invalid_field("--map", f"names {unknown[0]!r}, which is no column; there are {_listed(guesses)}")
    found: list[ColumnGuess] = []
    for guess in guesses:
        name = given.get(guess.column, guess.column if guess.column in channels else guess.channel)
        spec = channels.get(name)
        if spec is None and drop_unknown and guess.column not in given:
            continue
        if spec is None:
            raise invalid_field(
                guess.column,
                f"fits no channel of {kind.twin_type_id}; there are {', '.join(channels)}. Say which it is, "
                f"--map '{guess.column}=CHANNEL', or leave it out: --drop '{guess.column}'",
            )
        how = "as you said" if guess.column in given else "same name" if guess.column == name else "guessed"
        unit = units.get(guess.column, units.get(name, guess.unit if spec.kind.has_unit else ""))
        found.append(replace(guess, channel=name, kind=spec.kind, unit=unit, note=how))
    names = [g.channel for g in found]
    for guess in found:
        if names.count(guess.channel) > 1:
            raise invalid_field(
                guess.column, f"and another column both become {guess.channel!r}; use --map or --drop for one of them"
            )
    if not found:
        raise invalid_field("columns", f"none fits a channel of {kind.twin_type_id}; there are {_listed(guesses)}")
    return tuple(found)


def describe_columns(columns: Sequence[ColumnGuess]) -> list[str]:
    """Return one line per column: ``HUFL -> hufl  GAUGE  unit kW``."""
    widest = max((len(c.column) for c in columns), default=0)
    return [
        f"{c.column:<{widest}} -> {c.channel:<{widest}}  {c.kind.name:<5}  "
        + (c.unit or "no unit")
        + (f"   ({c.note})" if c.note else "")
        for c in columns
    ]


def _guess(title: str, cells: pd.Series[Any], taken: set[str]) -> ColumnGuess:
    import pandas as pd

    match = _UNIT.match(title)
    name, unit, note = (match["name"], match["unit"].strip(), "") if match else (title, "", "")
    if unit:
        try:
            unit = canonical(unit, title)
        except InvalidArgument:
            name, unit, note = title, "", f"unit {unit!r} is not known, kept without"
    kind = ChannelKind.GAUGE
    if pd.api.types.is_bool_dtype(cells):
        kind, unit = ChannelKind.BOOL, ""
    elif not pd.api.types.is_numeric_dtype(cells):
        truths = {str(v).lower() for v in cells.dropna().unique()[:3]} <= _TRUTHS
        kind, unit = (ChannelKind.BOOL if truths else ChannelKind.TEXT), ""
    return ColumnGuess(column=title, channel=_channel_name(name, taken), kind=kind, unit=unit, note=note)


def _channel_name(title: str, taken: set[str]) -> str:
    """Return a channel name that nobody has: small letters, digits and underscores, beginning with a letter."""
    # Letters keep what they are without their accents: Öl becomes ol, not l.
    plain = unicodedata.normalize("NFKD", title.lower()).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "column"
    name = (name if name[0].isalpha() else f"c_{name}")[:60]
    unique, n = name, 1
    while unique in taken:
        n += 1
        unique = f"{name}_{n}"
    taken.add(unique)
    return unique


def _listed(guesses: Sequence[ColumnGuess]) -> str:
    return ", ".join(g.column for g in guesses)
