"""What is known of each transformer class: its card, and the look-up by class."""

import itertools
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from dit_cache_backends.errors import CardError, UnknownTransformerError, near
from dit_cache_backends.models.card import BlockList, Card, Stack, stack
from dit_cache_backends.models.cards import CARDS
from dit_cache_backends.models.installed import CardSource, installed_cards
from dit_cache_backends.models.signals import Signal, TimeSignal

__all__ = [
    "BlockList",
    "Card",
    "Signal",
    "Stack",
    "TimeSignal",
    "card_for",
    "card_problems",
    "find_card",
    "is_built_in",
    "list_cards",
    "register_card",
    "stack",
    "uncompiled",
]

_Key = tuple[str, str | None]

_OWN = "dit-cache-backends"
_cards: dict[_Key, Card] = {}
"""Those that were registered in this process; they come before all others."""
_built_in: dict[_Key, Card] = {(card.transformer, card.library): card for card in CARDS}


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, where ``module`` is what ``torch.compile(module)`` made of it."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def register_card(card: Card, *, replace: bool = False) -> None:
    """Make a card known for the rest of the process.

    Raises:
        CardError: if there is another card for that class and ``replace`` is not set.
    """
    key = (card.transformer, card.library)
    if not replace and any(other != card for other in _known(key)):
        raise CardError(
            f"There is another card for {card.transformer} of {card.library}. Pass replace=True to replace it."
        )
    _cards[key] = card


def list_cards() -> list[Card]:
    """Every known card, by class name. Of cards that contradict each other (``card_problems``) the first."""
    keys = {*_cards, *(key for key, _, _ in _offers())}
    return sorted((_known(key)[0] for key in keys), key=lambda card: (card.transformer, card.library or ""))


def card_problems() -> list[str]:
    """What is wrong with installed cards: packages whose cards cannot be loaded, and cards that contradict others."""
    broken = [
        f"the cards of {source} cannot be loaded: {source.error}. Repair or uninstall {source.distribution}."
        for source in installed_cards()
        if source.error is not None
    ]
    keys = dict.fromkeys(key for key, _, _ in _offers() if key not in _cards)
    return broken + [conflict for key in keys if (conflict := _conflict(key))]


def find_card(cls: type) -> Card | None:
    """The card of ``cls`` itself, else of the first of its bases that has one. Names must match exactly.

    Raises:
        CardError: if installed distributions have different cards for it.
    """
    for base in cls.__mro__:
        library = base.__module__.partition(".")[0]
        for key in ((base.__name__, library), (base.__name__, None)):
            found = _known(key)
            if not found:
                continue
            if key not in _cards and (conflict := _conflict(key)):
                raise CardError(conflict)
            return found[0]
    return None


def is_built_in(card: Card) -> bool:
    """Whether a card is one of this package's own."""
    return _built_in.get((card.transformer, card.library)) is card


def _known(key: _Key) -> list[Card]:
    """The cards for a class: the registered one, else the offered ones."""
    if key in _cards:
        return [_cards[key]]
    return [card for other, card, _ in _offers() if other == key]


def _offers() -> Iterator[tuple[_Key, Card, CardSource | None]]:
    """Every card that comes with a distribution; this one's own first, with no source."""
    own = ((key, card, None) for key, card in _built_in.items())
    others = (
        ((card.transformer, card.library), card, source)
        for source in installed_cards()
        for card in source.cards
    )
    return itertools.chain(own, others)


def _conflict(key: _Key) -> str:
    """What is said where different cards are offered for a class; empty where they agree."""
    offers = [(card, source) for other, card, source in _offers() if other == key]
    if all(card == offers[0][0] for card, _ in offers):
        return ""
    names = dict.fromkeys(_own_name() if source is None else str(source) for _, source in offers)
    return (
        f"there are different cards for {key[0]} of {key[1] or 'any library'}: from {' and from '.join(names)}. "
        "Uninstall all but one, or say which holds: "
        "dit_cache_backends.register_card(card, replace=True)."
    )


def _own_name() -> str:
    try:
        return f"{_OWN} {version(_OWN)}"
    except PackageNotFoundError:
        return _OWN


def card_for(transformer: nn.Module) -> Card:
    """The card of a transformer.

    Raises:
        UnknownTransformerError: with the names near to it, and how to add a card.
    """
    cls = type(uncompiled(transformer))
    card = find_card(cls)
    if card is None:
        known = sorted({card.transformer for card in list_cards()})
        raise UnknownTransformerError(
            f"Nothing is known of the transformer class {cls.__module__}.{cls.__qualname__}: there is no card for it."
            f"{near(cls.__name__, known)} `dit-cache models` lists the known ones. To add one, say which lists "
            "its blocks "
            f"are in and which tensors run through them: dit_cache_backends.register_card(Card({cls.__name__!r}, "
            '(stack(BlockList("transformer_blocks", takes=("hidden_states",), gives="hidden_states")),), '
            "library=None))."
        )
    return card
