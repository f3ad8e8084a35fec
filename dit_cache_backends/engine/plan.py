"""A card and a layout, worked out for one transformer: each block's site in its stack and span."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

from torch import Tensor, nn

from dit_cache_backends.engine.gates import Gate, Place
from dit_cache_backends.engine.predictors import Predictor
from dit_cache_backends.engine.spans import Span, Stream, Streams, check_layout
from dit_cache_backends.engine.storage import Storage
from dit_cache_backends.errors import CardError
from dit_cache_backends.models import uncompiled
from dit_cache_backends.models.card import HELD, BlockList, Card, Fit, Stack


class Strategy(Protocol):
    """What the engine asks of a strategy: where, when, how, and when to begin anew."""

    def layout(self, depth: int) -> Sequence[Span]: ...
    def gate(self, place: Place) -> Gate: ...
    def predictor(self, stream: Stream) -> Predictor: ...
    def restarts(self, index: int, times: int) -> bool: ...
    def part(self, transformer: str, stack: str | None = None) -> "Strategy": ...
    def for_steps(self, total: int | None) -> "Strategy": ...
    def settings(self) -> Mapping[str, Any]: ...
    def storage(self) -> Storage: ...
    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None: ...


@dataclass(frozen=True, slots=True)
class StackPlan:
    """One stack of one transformer, with its spans."""

    number: int
    name: str
    streams: tuple[Stream, ...]
    depth: int
    spans: tuple[Span, ...]
    first_span: int
    """The number of its first span among all spans of the transformer."""
    strategy: Strategy
    alternate: Fit | None


@dataclass(slots=True)
class Site:
    """The place of one block: where its streams are among its arguments, and what it is to its span."""

    plan: StackPlan
    index: int
    label: str
    slots: tuple[tuple[int, str], ...]
    """Position and name of each stream among the parameters."""
    order: tuple[int | None, ...]
    """Which stream each returned item is; None for one that is none, and is held."""
    bare: bool
    """Returns a tensor and no tuple."""
    span: int | None = None
    """The number of its span in the stack; None outside every span."""
    enters: bool = False
    exits: bool = False
    layout: int = 0
    """In which of several layouts the block has the main stream."""
    shown: bool = False
    """What the block gives is seen outside its span, although it does not end it."""
    seen: bool = False
    """It is shown, or gives something that is no stream."""
    bit: int = 0
    """Its number among the blocks of the stack, as one bit."""
    hands: tuple[tuple[int, str], ...] = ()
    """Position and name, among the parameters, of each item it returns, where all of them are streams."""
    through: bool = False
    """It stands in the midst of its span, and only hands its streams on when that is skipped."""
    hand: Callable[[Mapping[str, Any]], Any] | None = None
    """``hand_on`` where every argument is given by name; ``itemgetter`` does it in a third of the time. So below."""
    take: Callable[[Mapping[str, Any]], Streams] | None = None
    put: Callable[[Streams], Any] | None = None
    checked: bool = field(default=False)
    writes_known: bool = field(default=False)
    """It was seen that the blocks of the span that begins here do not write into their arguments."""

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """The streams among the arguments of a call, given by position or by keyword."""
        if not args and self.take is not None:
            try:
                return self.take(kwargs)
            except KeyError:
                pass  # One is left to its default.
        given = len(args)
        return tuple(
            [args[position] if position < given else kwargs.get(name) for position, name in self.slots]
        )

    def hand_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The streams among the arguments of a call, in the form in which the block returns them."""
        if not args and self.hand is not None:
            try:
                return self.hand(kwargs)
            except KeyError:
                pass  # One is left to its default.
        given = len(args)
        items = [args[position] if position < given else kwargs.get(name) for position, name in self.hands]
        return items[0] if self.bare else tuple(items)

    def give(self, streams: Streams, held: tuple[Any, ...] = ()) -> Any:
        """The streams in the form in which the block returns them, with ``held`` where an item is no stream."""
        if self.bare:
            return streams[self.order[0] or 0]
        if self.put is not None:
            return self.put(streams)
        if not held:
            return tuple([streams[number] for number in self.order])  # type: ignore[index]
        rest = iter(held)
        return tuple([next(rest) if number is None else streams[number] for number in self.order])

    def held(self, out: Any) -> tuple[Any, ...]:
        """The items of what the block returned that are no streams."""
        return () if self.bare else tuple([i for n, i in zip(self.order, out, strict=True) if n is None])

    def streams_from(self, out: Any, before: Streams) -> Streams:
        """The streams after a block that returned ``out``; one that it does not return is as it was before."""
        if self.bare:
            after = list(before)
            after[self.order[0] or 0] = out
            return tuple(after)
        after = list(before)
        for number, item in zip(self.order, out, strict=True):
            if number is not None:
                after[number] = item
        return tuple(after)

    def check_streams(self, streams: Streams) -> None:
        """Compare the arguments of the first real call with the card.

        Raises:
            CardError: if a stream is neither a tensor nor None, or the main one is None.
        """
        for stream, value in zip(self.plan.streams, streams, strict=True):
            if not isinstance(value, Tensor) and (stream.main or value is not None):
                raise CardError(
                    f"{self.label} was called with {type(value).__name__} for its stream {stream.name!r}; the card "
                    "says that a tensor comes in there. Correct `takes` in the card."
                )

    def check_form(self, out: Any) -> None:
        """Compare what the first real call returned with the card.

        Raises:
            CardError: if the block returns another form.
        """
        expected = "a tensor" if self.bare else f"a tuple of {len(self.order)}"
        if self.bare:  # noqa: SIM108 (two forms, two cases)
            fits = isinstance(out, Tensor)
        else:
            fits = isinstance(out, (tuple, list)) and len(out) == len(self.order)
        if not fits:
            got = f"a tuple of {len(out)}" if isinstance(out, (tuple, list)) else type(out).__name__
            raise CardError(
                f"{self.label} returned {got}; the card says {expected}. Correct `gives` in the card."
            )
        self.checked = True


def make_plans(
    transformer: nn.Module, card: Card, strategy: Strategy, name: str
) -> tuple[list[StackPlan], list[tuple[nn.Module, Site]]]:
    """Work out every stack and the site of every block.

    Raises:
        CardError: if the card does not fit the module.
        ConfigError: if the strategy's layout does not fit the depth of a stack.
    """
    plans: list[StackPlan] = []
    sites: list[tuple[nn.Module, Site]] = []
    spans_before = 0
    for stack in card.stacks if card.arrange is None else card.arrange(transformer):
        members = _members(transformer, stack, card)
        if not members:
            continue
        depth = len(members)
        taken = any(plan.name == stack.name for plan in plans)
        stack_name = f"{stack.name}[{stack.lists[0].part[0]}:]" if taken else stack.name
        where = f"{name} ({card.transformer}), stack {stack_name!r} of {depth} blocks"
        streams = tuple(Stream(stream, number == 0) for number, stream in enumerate(stack.lists[0].takes))
        part = strategy.part(name, stack_name)
        spans = check_layout(_layout(part, depth, where), depth, where)
        plan = StackPlan(len(plans), stack_name, streams, depth, spans, spans_before, part, stack.alternate)
        spans_before += len(spans)
        plans.append(plan)
        signatures: dict[tuple[type, str], tuple[tuple[int, str], ...]] = {}
        for index, (block, blocks, path) in enumerate(members):
            label = f"{card.transformer}.{path} ({type(block).__name__})"
            kind = (type(block), blocks.path)
            if kind not in signatures:
                signatures[kind] = _positions(block, blocks, label)
            given = (blocks.gives,) if isinstance(blocks.gives, str) else blocks.gives
            order = tuple(None if name.startswith(HELD) else blocks.takes.index(name) for name in given)
            site = Site(plan, index, label, signatures[kind], order, isinstance(blocks.gives, str))
            site.layout = stack.lists.index(blocks) if stack.alternate else 0
            for number, span in enumerate(spans):
                if span.start <= index < span.stop:
                    site.span, site.enters, site.exits = number, index == span.start, index == span.stop - 1
                    mirrored = span.start <= depth - 1 - index < span.stop
                    site.shown = stack.long_skips and index < depth // 2 and not site.exits and not mirrored
            site.bit, site.seen = 1 << index, site.shown or None in order
            site.hands = tuple(signatures[kind][number] for number in order if number is not None)
            if site.bare or len(site.hands) > 1:
                site.hand = itemgetter(*[name for _, name in site.hands])
            if len(site.slots) > 1:
                site.take = itemgetter(*[name for _, name in site.slots])
            if len(order) > 1 and None not in order:
                site.put = itemgetter(*order)
            site.through = site.span is not None and not (site.enters or site.exits or site.seen)
            sites.append((block, site))
    if not plans:
        raise CardError(
            f"{card.transformer}: none of the lists {[s.name for s in card.stacks]} of its card holds a block "
            "in this model."
        )
    if len({id(block) for block, _ in sites}) != len(sites):
        raise CardError(
            f"{card.transformer}: one block stands at several places of its stacks; such models cannot be cached."
        )
    return plans, sites


def _layout(strategy: Strategy, depth: int, where: str) -> Sequence[Span]:
    try:
        return strategy.layout(depth)
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from None


def _members(transformer: nn.Module, stack: Stack, card: Card) -> list[tuple[nn.Module, BlockList, str]]:
    """The blocks in the order in which they are called, each with its list and its path."""
    lists = [
        [
            (block, blocks, f"{blocks.path}.{number}")
            for number, block in enumerate(_blocks(transformer, blocks, card))
        ][slice(*blocks.part)]
        for blocks in stack.lists
    ]
    if stack.alternate:
        return [member for group in zip(*lists, strict=True) for member in group]
    return [member for members in lists for member in members]


def _blocks(transformer: nn.Module, blocks: BlockList, card: Card) -> list[nn.Module]:
    try:
        return list(transformer.get_submodule(blocks.path).children())
    except AttributeError:
        lists = [path for path, module in transformer.named_modules() if isinstance(module, nn.ModuleList)]
        raise CardError(
            f"The card of {card.transformer} names the module list {blocks.path!r}, which this model does not have. "
            f"Its module lists: {', '.join(lists) or 'none'}. Correct `path` in the card."
        ) from None


def _positions(block: nn.Module, blocks: BlockList, label: str) -> tuple[tuple[int, str], ...]:
    parameters = list(inspect.signature(type(uncompiled(block)).forward).parameters)[1:]
    missing = [stream for stream in blocks.takes if stream not in parameters]
    if missing:
        raise CardError(
            f"{label} has no parameter {', '.join(map(repr, missing))}, which its card names as a stream. "
            f"Its parameters: {', '.join(parameters)}. Correct `takes` in the card."
        )
    return tuple((parameters.index(stream), stream) for stream in blocks.takes)
