"""Cards that other packages bring: entry points of the group ``dit_cache_backends.models``.

An entry point names a :class:`Card`, or an iterable of them. They are looked for when a card is first asked for, and
again when ``sys.path`` has changed, so that importing this package imports no other.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from dit_cache_backends.models.card import Card
from dit_cache_backends.plugins import load_entry_point, owner

GROUP = "dit_cache_backends.models"


@dataclass(frozen=True, slots=True)
class CardSource:
    """An entry point with its cards; ``error`` tells why it has none."""

    distribution: str
    version: str
    origin: str
    cards: tuple[Card, ...] = ()
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.origin})"


_found: tuple[tuple[str, ...], tuple[CardSource, ...]] | None = None


def installed_cards() -> tuple[CardSource, ...]:
    """What installed distributions bring, the broken ones with their reason."""
    global _found
    path = tuple(sys.path)
    if _found is None or _found[0] != path:
        _found = (path, ())  # a plugin that asks for a card while it is imported sees none of the others
        _found = (path, tuple(_source(point) for point in entry_points(group=GROUP)))
    return _found[1]


def _source(point: EntryPoint) -> CardSource:
    distribution, version = owner(point)
    try:
        cards = _cards(load_entry_point(point, GROUP))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        return CardSource(distribution, version, point.value, error=reason)
    return CardSource(distribution, version, point.value, cards)


def _cards(plugin: object) -> tuple[Card, ...]:
    found = (plugin,) if isinstance(plugin, Card) else tuple(plugin) if isinstance(plugin, Iterable) else ()
    wrong = [each for each in found if not isinstance(each, Card)]
    if wrong or not found:
        given = f"it has {wrong[0]!r}" if wrong else f"it is {plugin!r}"
        raise TypeError(f"expected a dit_cache_backends.Card or an iterable of them, but {given}")
    return tuple(each for each in found if isinstance(each, Card))
