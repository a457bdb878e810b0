"""Settings of a service: one frozen dataclass, read once from the environment, explained by ``--help``.

A field says in one place what it is called, what it means, its unit, its default and its bounds::

    port: int = setting(7401, help="Where this service listens for gRPC.", unit="port", minimum=0, maximum=65535)

and is set by ``TWINMESH_<TOKEN>_<FIELD>``. A value that cannot be used is told with its variable, itself and what is
allowed; all such values at once, since fixing them one start at a time is tedious.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

SettingsT = TypeVar("SettingsT")
_META = "twinmesh_setting"
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class SettingsError(Exception):
    """One or more settings cannot be used; `problems` has a sentence for each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meta:
    help: str
    unit: str
    secret: bool
    minimum: float | None
    maximum: float | None
    env: str


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002  the word every command line uses for it
    unit: str = "",
    secret: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    env: str = "",
) -> Any:
    """Declare a field of a settings dataclass; without a default its variable must be set.

    Args:
        default: the value when the variable is not set.
        help: why one would change it.
        unit: unit of the number, or form of the text, e.g. ``s`` or ``host:port``.
        secret: never print the value.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        env: the variable's whole name, where it is not ``TWINMESH_<TOKEN>_<FIELD>``.
    """
    meta = _Meta(help=help, unit=unit, secret=secret, minimum=minimum, maximum=maximum, env=env)
    return dataclasses.field(default=default, metadata={_META: meta})


def load_settings(settings_type: type[SettingsT], token: str, environ: Mapping[str, str]) -> SettingsT:
    """Read `settings_type` from `environ`.

    Raises:
        SettingsError: with every problem found.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in _fields(settings_type, token):
        text = environ.get(field.variable)
        if text is None:
            if field.default is dataclasses.MISSING:
                problems.append(f"{field.variable} is not set; it must be {field.allowed}. {field.meta.help}")
            continue
        try:
            values[field.name] = field.read(text)
        except ValueError:
            shown = "its value (hidden)" if field.meta.secret else repr(text)
            problems.append(f"{field.variable}: {shown} cannot be used; it must be {field.allowed}.")
    if problems:
        raise SettingsError(tuple(problems))
    try:
        return settings_type(**values)
    except ValueError as error:
        raise SettingsError((f"The settings do not fit together: {error}",)) from error


def describe_settings(settings_type: type[Any], token: str) -> str:
    """Return what ``--help`` prints: each variable with its form, unit, default and reason."""
    lines = []
    for field in _fields(settings_type, token):
        default = "required" if field.default is dataclasses.MISSING else f"default {_shown(field.default)}"
        lines += [f"  {field.variable}", f"      {field.allowed}; {default}", f"      {field.meta.help}"]
    return "\n".join(lines)


def public_settings(settings: Any) -> dict[str, str]:
    """Return field name to printed value, with secrets hidden: for the log line of the start."""
    shown = {}
    for field in dataclasses.fields(settings):
        meta = field.metadata.get(_META)
        value = getattr(settings, field.name)
        shown[field.name] = "(hidden)" if meta is not None and meta.secret and value else _shown(value)
    return shown


def unknown_variables(settings_type: type[Any], token: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables that carry this service's prefix and set nothing: most likely typing errors."""
    known = {field.variable for field in _fields(settings_type, token)}
    prefix = f"TWINMESH_{token.upper()}_"
    return tuple(sorted(name for name in environ if name.startswith(prefix) and name not in known))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One setting, resolved: what it is called, how its text is read and what to say when that fails."""

    name: str
    variable: str
    allowed: str
    default: Any
    meta: _Meta
    parse: Callable[[str], Any]

    def read(self, text: str) -> Any:
        """Return the value of `text`; ValueError when it is not one, or out of bounds."""
        value = self.parse(text.strip())
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                if self.meta.minimum is not None and number < self.meta.minimum:
                    raise ValueError
                if self.meta.maximum is not None and number > self.meta.maximum:
                    raise ValueError
        return value


def _fields(settings_type: type[Any], token: str) -> list[_Field]:
    hints = get_type_hints(settings_type)
    found = []
    for field in dataclasses.fields(settings_type):
        meta: _Meta | None = field.metadata.get(_META)
        if meta is None:
            raise TypeError(f"{settings_type.__name__}.{field.name} is not declared by setting()")
        form, parse = _reader(hints[field.name])
        found.append(
            _Field(
                name=field.name,
                variable=meta.env or f"TWINMESH_{token.upper()}_{field.name.upper()}",
                allowed=form + (f" ({meta.unit})" if meta.unit else "") + _bounds(meta),
                default=field.default,
                meta=meta,
                parse=parse,
            )
        )
    return found


def _bounds(meta: _Meta) -> str:
    match (meta.minimum, meta.maximum):
        case (None, None):
            return ""
        case (low, None):
            return f", at least {low:g}"
        case (None, high):
            return f", at most {high:g}"
        case (low, high):
            return f" from {low:g} to {high:.12g}"
    raise AssertionError("unreachable")


def _reader(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """Return what values of `hint` look like, in words, and the function that reads one."""
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        inner = [argument for argument in get_args(hint) if argument is not types.NoneType]
        form, parse = _reader(inner[0])
        return f"{form}, or empty for none", lambda text: parse(text) if text else None
    if origin is tuple:
        form, parse = _reader(get_args(hint)[0])
        return f"a comma-separated list, each {form}", lambda text: tuple(
            parse(part.strip()) for part in text.split(",") if part.strip()
        )
    if origin is Literal:
        return _one_of(get_args(hint))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        form, parse = _one_of(tuple(member.value for member in hint))
        return form, lambda text: hint(parse(text))
    if hint in _SCALARS:
        return _SCALARS[hint]
    raise TypeError(f"settings cannot have the type {hint!r}")


def _one_of(choices: tuple[Any, ...]) -> tuple[str, Callable[[str], Any]]:
    by_text = {str(choice).lower(): choice for choice in choices}

    def parse(text: str) -> Any:
        if text.lower() not in by_text:
            raise ValueError(text)
        return by_text[text.lower()]

    return "one of " + ", ".join(str(choice) for choice in choices), parse


def _bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_SCALARS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", _bool),
    int: ("a whole number", int),
    float: ("a number", _float),
    str: ("a text", str),
    Path: ("a path", lambda text: Path(text).expanduser()),
}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_shown(part) for part in value) or "empty"
    return "none" if value is None else str(value) or "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What every service lets its operator choose; a service's own settings inherit it and set `port`."""

    host: str = setting("127.0.0.1", help="Address to listen on; open mode allows loopback only.", unit="IP address")
    port: int = setting(0, help="Where gRPC is served; 0 takes a free one.", unit="port", minimum=0, maximum=65535)
    metrics_port: int = setting(
        0, help="Where Prometheus scrapes /metrics; 0 serves none.", unit="port", minimum=0, maximum=65535
    )
    mode: Literal["open"] = setting(
        "open", help="Who may call: open maps every caller to tenant default, role admin, and trusts its network."
    )
    allow_insecure_bind: bool = setting(
        False,
        help="Let open mode listen beyond loopback, e.g. in a container whose network nobody else can reach. "
        "Whoever reaches the port is admin.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = setting("INFO", help="Least severe line that is logged.")
    log_format: Literal["text", "json"] = setting("text", help="text for people, json for collectors.")
    drain_grace_s: float = setting(
        10.0, help="How long calls in flight may take to end once the service stops.", unit="s", minimum=0, maximum=600
    )
    drain_propagation_s: float = setting(
        0.2,
        help="Pause between saying not ready and refusing calls, so that balancers hear it first.",
        unit="s",
        minimum=0,
        maximum=120,
    )
    max_message_bytes: int = setting(
        16 * 1024 * 1024,
        help="Largest message, received or sent.",
        unit="bytes",
        minimum=64 * 1024,
        maximum=256 * 1024 * 1024,
    )
    max_concurrent_rpcs: int = setting(
        512, help="Unary calls served at once; one more is shed with RESOURCE_EXHAUSTED.", unit="calls", minimum=1
    )
    max_concurrent_streams: int = setting(
        12_000, help="Streams served at once; one more is shed with RESOURCE_EXHAUSTED.", unit="streams", minimum=1
    )
    default_deadline_s: float = setting(
        30.0, help="Deadline of a unary call whose caller set none.", unit="s", minimum=0.1, maximum=3600
    )
    max_connection_age_s: float = setting(
        0.0,
        help="Age at which a connection is asked to reconnect, so that new replicas get calls; 0 never asks. "
        "Streams then resume every so often.",
        unit="s",
        minimum=0,
        maximum=86_400,
    )
    mesh_ingestion: str = setting(
        "127.0.0.1:7400", help="The ingestion service.", unit="gRPC target", env="TWINMESH_MESH_INGESTION"
    )
    mesh_storage: str = setting(
        "127.0.0.1:7401", help="The storage service.", unit="gRPC target", env="TWINMESH_MESH_STORAGE"
    )
    mesh_statesync: str = setting(
        "127.0.0.1:7402", help="The state-sync service.", unit="gRPC target", env="TWINMESH_MESH_STATESYNC"
    )
    mesh_training: str = setting(
        "127.0.0.1:7403", help="The training service.", unit="gRPC target", env="TWINMESH_MESH_TRAINING"
    )
    mesh_inference: str = setting(
        "127.0.0.1:7404", help="The inference service.", unit="gRPC target", env="TWINMESH_MESH_INFERENCE"
    )
    mesh_advertised_host: str = setting(
        "",
        help="Host that clients are told for all five services, each at the port of its target above, where they "
        "cannot resolve the names that the services use among themselves; empty tells the targets as they are.",
        unit="host name or address",
        env="TWINMESH_MESH_ADVERTISED_HOST",
    )
