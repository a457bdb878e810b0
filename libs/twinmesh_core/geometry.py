"""Where the shape of an entity is found and how it is placed: a reference, never the shape itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Final
from urllib.parse import urlsplit

from twinmesh_core.errors import FieldViolation

SCHEMES: Final = ("https", "http", "s3", "gs", "az", "urn")
"""Schemes a shape may be at; no `file`, `data` or `javascript`, since pages that show a twin follow the reference."""
MAX_URI_LENGTH: Final = 2_048
MAX_FRAME_LENGTH: Final = 128
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A shape and its place; at most one of `matrix` and `translation` is given.

    Attributes:
        uri: where the shape is.
        frame: the coordinate frame that the transform leads into; "" = the file's own.
        matrix: 16 numbers, 4 x 4 row by row, metres; empty = none.
        translation: x, y, z in metres; empty = none.
        rotation: unit quaternion x, y, z, w; empty = not rotated.
    """

    uri: str
    frame: str = ""
    matrix: tuple[float, ...] = ()
    translation: tuple[float, ...] = ()
    rotation: tuple[float, ...] = ()


def geometry_violations(at: str, g: Geometry) -> Iterator[FieldViolation | None]:
    """Yield what is wrong with a geometry reference."""
    yield _uri_violation(f"{at}.uri", g.uri)
    long = len(g.frame) > MAX_FRAME_LENGTH or not g.frame.isprintable()
    yield _bad(long, f"{at}.frame", f"must be at most {MAX_FRAME_LENGTH} printable characters")
    yield _bad(bool(g.matrix and g.translation), at, "has a matrix and a pose; give one of them")
    if g.matrix:
        wrong = len(g.matrix) != 16 or not all(map(isfinite, g.matrix))
        yield _bad(wrong, f"{at}.matrix.values", "must be 16 finite numbers, 4 x 4 row by row")
        if not wrong:
            affine = all(abs(a - b) <= _TOLERANCE for a, b in zip(g.matrix[12:], (0, 0, 0, 1), strict=True))
            yield _bad(not affine, f"{at}.matrix.values", "must end with the row 0 0 0 1")
            yield _bad(_determinant(g.matrix) == 0.0, f"{at}.matrix.values", "cannot be inverted")
    if g.translation or g.rotation:
        place = len(g.translation) != 3 or not all(map(isfinite, g.translation))
        yield _bad(place, f"{at}.pose.translation", "must be 3 finite numbers: x, y, z in metres")
    if g.rotation:
        turn = len(g.rotation) != 4 or not all(map(isfinite, g.rotation))
        yield _bad(turn, f"{at}.pose.rotation", "must be 4 finite numbers: x, y, z, w")
        length = sum(part * part for part in g.rotation)
        yield _bad(not turn and abs(length - 1) > _TOLERANCE, f"{at}.pose.rotation", "must be a unit quaternion")


def _uri_violation(at: str, uri: str) -> FieldViolation | None:
    schemes = ", ".join(SCHEMES)
    if not uri:
        return FieldViolation(field=at, description=f"is required: an absolute URI ({schemes})")
    if len(uri) > MAX_URI_LENGTH or _URI.fullmatch(uri) is None:
        return FieldViolation(
            field=at, description=f"must be an absolute URI of at most {MAX_URI_LENGTH:,} ASCII characters"
        )
    if uri.partition(":")[0].lower() not in SCHEMES:
        return FieldViolation(field=at, description=f"has a scheme that is not allowed; allowed: {schemes}")
    try:
        parts = urlsplit(uri)
        secret = "@" in parts.netloc
        placeless = parts.scheme != "urn" and not parts.hostname
    except ValueError:
        return FieldViolation(field=at, description="is no URI")
    if secret:
        return FieldViolation(field=at, description="must not hold a user name or password")
    return _bad(placeless, at, "names no host or bucket")


def _determinant(matrix: tuple[float, ...]) -> float:
    """Return the determinant of the upper left 3 x 3: that of the whole, where the last row is 0 0 0 1."""
    a, b, c, _, d, e, f, _, g, h, i, *_ = matrix
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _bad(wrong: bool, path: str, description: str) -> FieldViolation | None:
    return FieldViolation(field=path, description=description) if wrong else None
