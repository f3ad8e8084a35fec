"""What a trace says of the lists of blocks: which are stacks, which go on into each other, which are left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dit_cache_backends.models.card import BlockList, Fit, Stack
from dit_cache_backends.models.streams import Pair, Streams, shape_of
from dit_cache_backends.models.trace import BlockCall, Given, Trace, kind

LAYOUTS: dict[str, Fit] = {
    "lambda main, shape: main": lambda main, shape: main,
    "lambda main, shape: main.reshape(-1, shape[1], *main.shape[1:]).transpose(1, 2).flatten(0, 1)": (
        lambda main, shape: main.reshape(-1, shape[1], *main.shape[1:]).transpose(1, 2).flatten(0, 1)
    ),
}
"""Functions by which lists called in turns may lay out the main stream for each other, by their text: the same for
both; and a frame's patches in each row, or a patch's frames (Latte)."""


@dataclass(frozen=True, slots=True)
class FoundList:
    """A list of repeated blocks that was called in order, and what was seen of its streams."""

    blocks: BlockList
    block_class: str
    depth: int
    remarks: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    """What was not seen and had to be taken from shapes or names."""


class Findings:
    """What a trace says of each list."""

    def __init__(self, seen: Trace) -> None:
        self.seen = seen
        self.remarks: list[str] = []
        self.lists: dict[str, FoundList] = {}
        """By their path; of a list in several parts, by the path and the part."""
        self.calls: dict[str, list[BlockCall]] = {}
        """Of the blocks of each of them."""
        self.turns: dict[str, str] = {}
        """Of two lists whose blocks are called in turns, the second by the first."""
        self.layouts: dict[str, str] = {}
        """How the main stream is laid out for the other of two such lists, by the first."""
        for path in seen.blocks:
            self._look_at(path)
        for one, other in self.turns.items():
            self._in_turns(one, other)

    def of_the_text_or_the_latents_alone(self) -> list[str]:
        """Lists that see less of the model's inputs than one they lead to: refiners, text towers."""
        return [path for path in self._in_order() if self._is_side(path)]

    def main(self) -> list[str]:
        """The others, in the order in which they are called."""
        side = self.of_the_text_or_the_latents_alone()
        return [path for path in self._in_order() if path not in side]

    def found(self) -> tuple[FoundList, ...]:
        """Every list whose streams are known, in the order in which they are called."""
        return tuple(self.lists[path] for path in self._in_order())

    def writes_in_place(self) -> bool:
        """Whether a block writes into a stream."""
        return any(
            set(self.lists[path].blocks.takes) & call.wrote
            for path in self.main()
            for call in self.calls[path]
        )

    def caches(self) -> list[str]:
        """Arguments of the blocks that may be stores which later calls read."""
        return sorted({n for path in self.main() for n in self.calls[path][0].arguments if "cache" in n})

    def _in_order(self) -> list[str]:
        return sorted(self.lists, key=lambda path: self.calls[path][0].number)

    def _look_at(self, path: str) -> None:
        calls, depth = self.seen.of(path), len(self.seen.blocks[path])
        if not calls:
            self.remarks.append(f"{path}: a list of {depth} that was not called with these inputs.")
        elif len(calls) < 2:
            self.remarks.append(
                f"{path}: one block alone, of which nobody can see where the next would get its streams."
            )
        elif not all(one.index < other.index for one, other in pairwise(calls)):
            self.remarks.append(f"{path}: its blocks are not called in their order, so it is no stack.")
        elif not isinstance(calls[0].out, (Tensor, tuple, list)):
            self.remarks.append(
                f"{path}: its blocks return {type(calls[0].out).__name__}; a card can say tensors and tuples only."
            )
        elif len({(isinstance(call.out, Tensor), len(call.items)) for call in calls}) != 1:
            self.remarks.append(f"{path}: its blocks do not all return as many things, so it is no stack.")
        elif not self._in_parts(path, calls):
            other = self._fed_by(calls)
            if other is None:
                self.remarks.append(f"{path}: no block gets what the one before it gave, so it is no stack.")
            elif other not in self.turns:
                self.turns[path] = other

    def _in_parts(self, path: str, calls: list[BlockCall]) -> bool:
        """The whole list; or, where the main stream does not go on from one block to the next, what is between."""
        pairs = list(pairwise(calls))
        if not self._found(path, calls, pairs):
            return False
        main, given = self.lists[path].blocks.takes[0], self.lists[path].blocks.gives
        item = 0 if isinstance(given, str) else given.index(main)
        breaks = [number for number, pair in enumerate(pairs, 1) if not self._goes_on(pair, item, main)]
        if not breaks:
            return True
        del self.lists[path]
        bounds = [0, *breaks, len(calls)]
        for start, stop in pairwise(bounds):
            few = calls[start:stop]
            part = (few[0].index if start else 0, calls[stop].index if stop < len(calls) else None)
            words = f"{path}[{part[0]}:{'' if part[1] is None else part[1]}]"
            if len(few) < 2 or not self._found(words, few, list(pairwise(few)), part):
                self.remarks.append(f"{words}: no block gets what the one before it gave, so it is no stack.")
        return True

    def _goes_on(self, pair: Pair, item: int, name: str) -> bool:
        """Whether it comes in at the next block, be it through blocks of another list that stand between them."""
        one, two = pair
        if one.items[item] is None or two.arguments[name] is one.items[item]:
            return True
        made = {Given(one.number, item)}
        for call in self.seen.calls[one.number + 1 : two.number]:
            if any(made & sources for sources in call.sources.values()):
                made |= {Given(call.number, number) for number in range(len(call.items))}
        return bool(made & two.sources[name])

    def _found(
        self, key: str, calls: list[BlockCall], pairs: list[Pair], part: tuple[int, int | None] = (0, None)
    ) -> bool:
        path = calls[0].path
        into, onward = ([pair for pair in pairs if pair[n].path == path] for n in (1, 0))
        streams = Streams(self.seen, calls, into, onward)
        if not streams.takes:
            return False
        remarks = list(streams.remarks)
        depth = len(self.seen.blocks[path][slice(*part)])
        missing = sorted(
            set(range(len(self.seen.blocks[path]))[slice(*part)]) - {call.index for call in calls}
        )
        if missing:
            remarks.append(f"blocks {missing} were not called with these inputs")
        if len([call for call in self.seen.calls if call.path == path]) > len(self.seen.of(path)):
            remarks.append("it is run through more than once in a forward")
        blocks = BlockList(path, streams.takes, streams.gives, part)
        name = kind(self.seen.blocks[path][0]).__name__
        self.lists[key] = FoundList(blocks, name, depth, tuple(remarks), tuple(streams.guesses))
        self.calls[key] = calls
        return True

    def _fed_by(self, calls: list[BlockCall]) -> str | None:
        """The list each of whose blocks stands between two of these."""
        for path in self.seen.blocks:
            others = self.seen.of(path)
            if len(others) == len(calls) and path != calls[0].path:
                ones, twos = sorted((calls, others), key=lambda each: each[0].number)
                if all(_leads(*pair) for pair in _in_turn(ones, twos)):
                    return path
        return None

    def _in_turns(self, one: str, other: str) -> None:
        """Latte: what a block gives goes to the block of the same number of the other list, and on from there."""
        first, second = sorted((one, other), key=lambda path: self.seen.of(path)[0].number)
        pairs = _in_turn(self.seen.of(first), self.seen.of(second))
        for path in (first, second):
            self._found(path, self.seen.of(path), pairs)
        main = {path: self.lists[path].blocks.takes[:1] for path in (first, second) if path in self.lists}
        for code, fit in LAYOUTS.items():
            if len(main) == 2 and _lays_out(fit, pairs, {path: names[0] for path, names in main.items()}):
                self.layouts[first] = code
                if pairs[0][0].items[0].is_meta:
                    guess = "how `alternate` lays out the main stream: without numbers only its shape was compared"
                    self.lists[first] = replace(self.lists[first], guesses=(guess,))
                return
        for path in main:
            del self.lists[path]
        self.remarks.append(
            f"the blocks of {first} and {second} are called in turns, so they are one stack; it needs `alternate`, a "
            "function that gives the main stream the layout that it has in the other list, and none of the usual ones "
            f"does: stack(BlockList({first!r}, ...), BlockList({second!r}, ...), alternate=...)."
        )

    def _is_side(self, path: str) -> bool:
        """Whether it sees less of the model's inputs than a list that it leads to."""
        own = set().union(*(call.inputs for call in self.calls[path]))
        reached = self._reached(self.calls[path][-1])
        return any(
            not self.calls[other][0].inputs <= own
            and any(call.number in reached for call in self.calls[other])
            for other in self.lists
            if other != path
        )

    def _reached(self, last: BlockCall) -> set[int]:
        """The calls that are made of what a call gave."""
        todo, numbers = {Given(last.number, item) for item in range(len(last.items))}, set()
        for call in self.seen.calls[last.number + 1 :]:
            if any(todo & sources for sources in call.sources.values()):
                numbers.add(call.number)
                todo |= {Given(call.number, item) for item in range(len(call.items))}
        return numbers

    def stacks(self) -> tuple[Stack, ...]:
        """The main lists, those through which the same streams go on joined."""
        groups: list[list[str]] = []
        for path in self.main():
            before = groups[-1] if groups else []
            in_turns = len(before) == 1 and before[0] in self.layouts
            if in_turns or (before and self._follows(before[-1], path)):
                before.append(path)
            else:
                groups.append([path])
        return tuple(
            Stack(
                tuple(self.lists[path].blocks for path in group),
                LAYOUTS[self.layouts[group[0]]] if group[0] in self.layouts else None,
                self._long_skips(group),
            )
            for group in groups
        )

    def _follows(self, one: str, other: str) -> bool:
        """Whether every stream goes on from the last block of one list to the first of another."""
        before, after = self.lists[one].blocks, self.lists[other].blocks
        last, first = self.calls[one][-1], self.calls[other][0]
        given = (before.gives,) if isinstance(before.gives, str) else before.gives
        if len(before.takes) != len(after.takes):
            return False
        for stream, name in zip(before.takes, after.takes, strict=True):
            if stream not in given:
                return False
            item = given.index(stream)
            now, then = first.arguments[name], last.items[item]
            straight = now is then and now is not None
            if not straight and not (
                Given(last.number, item) in first.sources[name] and shape_of(now) == shape_of(then)
            ):
                return False
        return True

    def _long_skips(self, group: list[str]) -> bool:
        """Whether blocks of the second half take what their mirror images in the first half gave."""
        (path, *others) = group
        calls = self.calls[path]
        if others or len(calls) < 4:
            return False
        main = self.lists[path].blocks.takes[0]
        skips = [
            call.index + other.index == len(calls) - 1
            for call in calls
            for other in calls[: max(call.index - 1, 0)]
            for name, sources in call.sources.items()
            if name != main and Given(other.number, 0) in sources
        ]
        return bool(skips) and all(skips)


def _in_turn(ones: list[BlockCall], twos: list[BlockCall]) -> list[Pair]:
    return list(pairwise(call for both in zip(ones, twos, strict=True) for call in both))


def _leads(one: BlockCall, two: BlockCall) -> bool:
    return any(Given(one.number, 0) in sources for sources in two.sources.values())


def _lays_out(fit: Fit, pairs: list[Pair], main: dict[str, str]) -> bool:
    """Whether what comes in at most blocks is what the one before gave, laid out by ``fit``."""
    found = []
    for one, two in pairs:
        given, taken = one.items[0], two.arguments[main[two.path]]
        try:
            laid_out = fit(given, taken.shape)
        except (RuntimeError, IndexError):
            return False
        found.append(laid_out.shape == taken.shape and (taken.is_meta or torch.equal(laid_out, taken)))
    return found.count(True) > len(found) / 2
