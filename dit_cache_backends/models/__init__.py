"""What is known of each transformer class: its card, and the look-up by class."""

from torch import nn

from dit_cache_backends.errors import CardError, UnknownTransformerError, near
from dit_cache_backends.models.card import BlockList, Card, Stack, stack
from dit_cache_backends.models.cards import CARDS

__all__ = [
    "BlockList",
    "Card",
    "Stack",
    "card_for",
    "find_card",
    "list_cards",
    "register_card",
    "stack",
    "uncompiled",
]

_cards: dict[tuple[str, str | None], Card] = {(card.transformer, card.library): card for card in CARDS}


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
    if _cards.get(key, card) != card and not replace:
        raise CardError(
            f"There is another card for {card.transformer} of {card.library}. Pass replace=True to replace it."
        )
    _cards[key] = card


def list_cards() -> list[Card]:
    """Every known card, by class name."""
    return sorted(_cards.values(), key=lambda card: (card.transformer, card.library or ""))


def find_card(cls: type) -> Card | None:
    """The card of ``cls`` itself, else of the first of its bases that has one. Names must match exactly."""
    for base in cls.__mro__:
        library = base.__module__.partition(".")[0]
        card = _cards.get((base.__name__, library)) or _cards.get((base.__name__, None))
        if card is not None:
            return card
    return None


def card_for(transformer: nn.Module) -> Card:
    """The card of a transformer.

    Raises:
        UnknownTransformerError: with the names near to it, and how to add a card.
    """
    cls = type(uncompiled(transformer))
    card = find_card(cls)
    if card is None:
        known = sorted({card.transformer for card in _cards.values()})
        raise UnknownTransformerError(
            f"Nothing is known of the transformer class {cls.__module__}.{cls.__qualname__}: there is no card for it."
            f"{near(cls.__name__, known)} `dit-cache models` lists the known ones. To add one, say which lists "
            "its blocks "
            f"are in and which tensors run through them: dit_cache_backends.register_card(Card({cls.__name__!r}, "
            '(stack(BlockList("transformer_blocks", takes=("hidden_states",), gives="hidden_states")),), '
            "library=None))."
        )
    return card
