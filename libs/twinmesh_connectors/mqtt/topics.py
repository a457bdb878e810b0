"""Topic templates: ``plants/{site}/{twin}/{channel}`` both subscribes and takes apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from twinmesh_connectors.readings import Unreadable

_PLACE: Final = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


class TopicTemplate:
    """One level of a topic may be ``{name}``, ``+`` (any), or at the end ``#`` (all the rest).

    Args:
        text: the template.

    Raises:
        ValueError: it is no valid template; the text says why.
    """

    def __init__(self, text: str) -> None:
        levels = text.split("/")
        if not text or "\0" in text:
            raise ValueError("is no topic; write e.g. plants/{twin}/{channel}")
        pattern: list[str] = []
        names: list[str] = []
        subscribed: list[str] = []
        for i, level in enumerate(levels):
            place = _PLACE.fullmatch(level)
            if place is not None:
                if place[1] in names:
                    raise ValueError(f"names {{{place[1]}}} twice; each level needs a name of its own")
                names.append(place[1])
                pattern.append(f"(?P<{place[1]}>[^/]+)")
                subscribed.append("+")
            elif level == "#" and i == len(levels) - 1:
                pattern.append(".*")
                subscribed.append("#")
            elif level == "+":
                pattern.append("[^/]*")
                subscribed.append("+")
            elif set(level) & set("{}+#"):
                raise ValueError(f"has the level {level!r}; a placeholder, + or # must be a whole level")
            else:
                pattern.append(re.escape(level))
                subscribed.append(level)
        self.text = text
        self.names = tuple(names)
        self.subscription = "/".join(subscribed)
        self._pattern = re.compile("/".join(pattern))

    def match(self, topic: str) -> dict[str, str] | None:
        """Return what the placeholders stand for in a topic; None = it is not of this template."""
        found = self._pattern.fullmatch(topic)
        return None if found is None else found.groupdict()


class NameTemplate:
    """A text with ``{name}`` placeholders, e.g. ``{site}-{device}``.

    Raises:
        ValueError: it names a placeholder that is not known.
    """

    def __init__(self, text: str, known: tuple[str, ...]) -> None:
        self.places = tuple(_PLACE.findall(text))
        for place in self.places:
            if place not in known:
                there = ", ".join(f"{{{name}}}" for name in known) or "none"
                raise ValueError(f"names {{{place}}}, which the topic does not have; it has {there}")
        self._text = text

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with its placeholders filled in.

        Raises:
            Unreadable: a placeholder has no value.
        """
        try:
            return _PLACE.sub(lambda found: values[found[1]], self._text)
        except KeyError:
            raise Unreadable("a placeholder of the name is empty") from None
