"""A TOML file of connectors, read strictly: every error names the key, what was found and what would be right.

::

    [mesh]
    target = "127.0.0.1:7400"         # default: as the command line finds it

    [spool]
    directory = "/var/lib/twinmesh/spool"   # relative paths start at the file; each connector has a folder in it
    max_bytes = 1_000_000_000
    full = "wait"                     # or "error"

    [connectors.roof]                 # a name of your choice
    kind = "host"                     # host, mqtt, opcua
    producer = "roof-gateway"         # default: the name
    # ... and the keys of its kind
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

from twinmesh_client.durations import span_us
from twinmesh_client.limits import SPOOL_MAX_BYTES
from twinmesh_connectors.connector import Connector
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.ids import entity_id_violation

KINDS: Final = {
    "host": ("twinmesh_connectors.host", "host"),
    "mqtt": ("twinmesh_connectors.mqtt", "mqtt"),
    "opcua": ("twinmesh_connectors.opcua", "opcua"),
}
"""Kind to the module whose ``from_config(name, table)`` builds it, and the extra that installs what it needs."""


class Table:
    """One table of the file; every key must be asked for, or `finish` refuses it."""

    def __init__(self, values: dict[str, Any], path: str, base: Path) -> None:
        self._values = values
        self.path = path
        self._base = base
        self._asked: list[str] = []

    def key(self, name: str) -> str:
        """Return the full name of a key, as errors name it."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Return whether the key is there; it counts as asked for."""
        self._asked.append(name)
        return name in self._values

    def text(self, name: str, default: str | None = None, *, example: str = "") -> str:
        """Return a text; without a default it is required."""
        return str(self._get(name, str, "a text", default, example or '"..."'))

    def whole(self, name: str, default: int | None = None, *, least: int = 0, most: int | None = None) -> int:
        """Return a whole number within bounds."""
        value = self._get(name, int, "a whole number", default, str(max(least, 1)))
        if value < least or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise self.wrong(name, f"is {value}; write {bounds}")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        return float(self._get(name, (int, float), "a number", default, "1.5"))

    def truth(self, name: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self._get(name, bool, "true or false", default, "true"))

    def secret(self, name: str) -> str:
        """Return what the variable of the environment holds that the key names; empty when the key is absent."""
        if not self.has(name):
            return ""
        variable = self.text(name, example='"BROKER_PASSWORD"')
        if variable not in os.environ:
            raise self.wrong(name, f"names {variable}, which is not set; set it, or take the key out")
        return os.environ[variable]

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of several texts."""
        value = self.text(name, default, example=f'"{choices[0]}"')
        if value not in choices:
            raise self.wrong(name, f"is {value!r}; choose from {', '.join(choices)}")
        return value

    def span_s(self, name: str, default: str | None = None) -> float:
        """Return a span of time, written ``"5s"`` or ``"1min"``, in seconds."""
        return span_us(self.text(name, default, example='"5s"'), self.key(name)) / 1e6

    def path_of(self, name: str, default: str | None = None) -> Path:
        """Return a path; a relative one starts at the file's own folder."""
        return self._base / Path(self.text(name, default, example='"folder/file"')).expanduser()

    def entity(self, name: str, default: str | None = None) -> str:
        """Return the id of a twin or a producer."""
        value = self.text(name, default, example='"T1"')
        violation = entity_id_violation(self.key(name), value)
        if violation is not None:
            raise self.wrong(name, violation.description)
        return value

    def texts(self, name: str) -> dict[str, str]:
        """Return a table of texts, e.g. units by channel; empty when absent."""
        found = self._get(name, dict, "a table of texts", {}, '{ oil = "degF" }')
        for key, value in found.items():
            if not isinstance(value, str):
                raise invalid_field(f"{self.key(name)}.{key}", f"is {value!r}; write a text in quotes")
        return dict(found)

    def table(self, name: str) -> Table:
        """Return a table within; empty when absent."""
        return Table(self._get(name, dict, "a table", {}, "{ ... }"), self.key(name), self._base)

    def tables(self, name: str) -> list[Table]:
        """Return the tables of an array, e.g. ``[[connectors.x.topics]]``; empty when absent."""
        found = self._get(name, list, "an array of tables", [], f"[[{self.key(name)}]]")
        for i, item in enumerate(found):
            if not isinstance(item, dict):
                raise invalid_field(f"{self.key(name)}[{i}]", f"is {item!r}; write [[{self.key(name)}]] and its keys")
        return [Table(item, f"{self.key(name)}[{i}]", self._base) for i, item in enumerate(found)]

    def names(self) -> list[str]:
        """Return the keys, in the order of the file."""
        return list(self._values)

    def wrong(self, name: str, problem: str) -> InvalidArgument:
        """Return the error for a key of this table."""
        return invalid_field(self.key(name), problem)

    def finish(self) -> None:
        """Refuse keys that nobody asked for: a misspelt one would otherwise be ignored."""
        for name in self._values:
            if name not in self._asked:
                near = difflib.get_close_matches(name, self._asked, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(set(self._asked)))}"
                raise self.wrong(name, f"is no key of this table; {remedy}")

    def _get(self, name: str, kinds: Any, what: str, default: Any, example: str) -> Any:
        self._asked.append(name)
        if name not in self._values:
            if default is None:
                raise self.wrong(name, f"is missing; write {name} = {example} under [{self.path}]")
            return default
        value = self._values[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise self.wrong(name, f"is {value!r}, not {what}; write {name} = {example}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One connector of the file.

    Attributes:
        connector: ready to run.
        kind: what the file calls it.
        producer_id: of its producer session.
        spool: its own folder; None = without one.
    """

    connector: Connector
    kind: str
    producer_id: str
    spool: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file.

    Attributes:
        target: any service of the mesh; None = found as the command line does.
        spool_max_bytes: bound of each connector's spool.
        spool_full: ``wait`` or ``error``.
        entries: the connectors, in the order of the file.
    """

    target: str | None
    spool_max_bytes: int
    spool_full: Literal["wait", "error"]
    entries: tuple[Entry, ...]


def read_config(path: Path) -> Config:
    """Read and check a file; raises `InvalidArgument` naming the key and the remedy."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise invalid_field(path.name, "there is no such file; check its name") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid_field(path.name, f"is no TOML: {error}; texts stand in quotes, tables in brackets") from None
    root = Table(values, "", path.resolve().parent)
    mesh, spool, listed = root.table("mesh"), root.table("spool"), root.table("connectors")
    root.finish()
    target = mesh.text("target") if mesh.has("target") else None
    mesh.finish()
    directory = spool.path_of("directory") if spool.has("directory") else None
    max_bytes = spool.whole("max_bytes", SPOOL_MAX_BYTES, least=1_000_000)
    full: Literal["wait", "error"] = "error" if spool.choice("full", ("wait", "error"), "wait") == "error" else "wait"
    spool.finish()
    if not listed.names():
        raise invalid_field("connectors", "is empty; name one: [connectors.NAME] with its kind")
    entries = tuple(_entry(name, listed.table(name), directory) for name in listed.names())
    producers = [entry.producer_id for entry in entries]
    for entry in entries:
        if producers.count(entry.producer_id) > 1:
            raise invalid_field(
                f"connectors.{entry.connector.name}.producer",
                f"{entry.producer_id!r} is used twice; give each connector a producer of its own",
            )
    return Config(target=target, spool_max_bytes=max_bytes, spool_full=full, entries=entries)


def _entry(name: str, table: Table, directory: Path | None) -> Entry:
    violation = entity_id_violation(table.path, name)
    if violation is not None:
        raise invalid_field(table.path, f"cannot name a connector: {violation.description}")
    kind = table.choice("kind", tuple(KINDS))
    producer_id = table.entity("producer", name)
    connector = _builder(kind, table)(name, table)
    table.finish()
    return Entry(connector=connector, kind=kind, producer_id=producer_id, spool=directory / name if directory else None)


def _builder(kind: str, table: Table) -> Callable[[str, Table], Connector]:
    module, extra = KINDS[kind]
    try:
        build: Callable[[str, Table], Connector] = import_module(module).from_config
    except ModuleNotFoundError as error:
        raise table.wrong(
            "kind", f"{kind} needs the module {error.name}; install it with: pip install 'twinmesh[{extra}]'"
        ) from None
    return build
