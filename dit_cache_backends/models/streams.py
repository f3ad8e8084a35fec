"""Which argument of the next block each thing that a block returns is, seen by where the tensors go."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dit_cache_backends.models.card import HELD
from dit_cache_backends.models.trace import BlockCall, Given, Trace, kind

Pair = tuple[BlockCall, BlockCall]
"""A call of a block, and that of the block which comes next."""


class Streams:
    """The streams of one list, as its card says them, with what is to be said of them."""

    def __init__(
        self,
        seen: Trace,
        calls: Sequence[BlockCall],
        pairs: Sequence[Pair],
        onward: Sequence[Pair] | None = None,
    ) -> None:
        """Take what was seen.

        Args:
            seen: the forward.
            calls: those of the list's blocks.
            pairs: whose second calls are of the list; the first ones too, unless two lists are called in turns.
            onward: whose first calls are of the list; the same unless two lists are called in turns.
        """
        self._onward = pairs if onward is None else onward
        self.remarks: list[str] = []
        self.guesses: list[str] = []
        """What was not seen."""
        self.takes: tuple[str, ...] = ()
        self.gives: str | tuple[str, ...] = ()
        self._seen, self._calls, self._pairs = seen, calls, pairs
        self._into: dict[int, str] = {}
        items = range(len(calls[0].items))
        for find in (self._straight, self._followed, self._nothing):
            for item in items:
                if item not in self._into:
                    find(item)
        given = tuple(self._into.get(item, f"{HELD}output{item}") for item in items)
        self.gives = given if isinstance(calls[0].out, (tuple, list)) else given[0]
        self.takes = self._in_order()
        if self.takes:
            self._remark(items)

    def _straight(self, item: int) -> None:
        """The very tensor."""
        self._choose(
            item,
            Counter(
                name
                for one, two in self._pairs
                for name, value in two.arguments.items()
                if isinstance(value, Tensor) and value is one.items[item]
            ),
        )

    def _followed(self, item: int) -> None:
        """What was made of it, if it has the shape that went in before, and changes from block to block."""
        found = Counter(
            name
            for one, two in self._pairs
            for name, sources in two.sources.items()
            if Given(one.number, item) in sources and self._changes(two, name)
        )
        if self._choose(item, found):
            self.remarks.append(f"the model works on {self._into[item]} between its blocks")

    def _changes(self, call: BlockCall, name: str) -> bool:
        value, earlier = call.arguments[name], [each for each in self._calls if each.number < call.number]
        if not isinstance(value, Tensor) or not earlier:
            return isinstance(value, Tensor)
        before = earlier[-1].arguments[name]
        return shape_of(value) == shape_of(before) and value is not before

    def _nothing(self, item: int) -> None:
        """Always None: then it is a parameter that always gets None, though it has no default."""
        if any(call.items[item] is not None for call in self._calls):
            return
        (call, *_) = self._calls
        parameters = inspect.signature(kind(self._seen.blocks[call.path][0]).forward).parameters  # type: ignore[attr-defined]
        for name, each in parameters.items():
            always_none = all(call.arguments.get(name, 0) is None for call in self._calls)
            if always_none and each.default is each.empty and name not in self._into.values():
                self._into[item] = name
                self.guesses.append(f"None came out as item {item}, and None went in as {name}")
                return

    def _choose(self, item: int, found: Counter[str]) -> bool:
        free = {name: times for name, times in found.items() if name not in self._into.values()}
        if not free:
            return False
        best = [name for name in self._calls[0].arguments if free.get(name) == max(free.values())]
        self._into[item] = best[0]
        if len(best) > 1:
            self.guesses.append(f"item {item} may be any of {', '.join(best)}; the first was taken")
        return True

    def _in_order(self) -> tuple[str, ...]:
        """The main stream first: the one that the output is made of, and that is made of the model's first input."""
        if all(call.items[item] is None for call in self._calls for item in self._into):
            return ()
        ranks = {}
        for item, name in self._into.items():
            leads_out = self._seen.reaches_output(Given(self._calls[-1].number, item))
            from_first = self._seen.inputs[0] in self._calls[0].sources[name]
            ranks[name] = (not leads_out, not from_first)
        names = [name for name in self._calls[0].arguments if name in ranks]
        names.sort(key=lambda name: ranks[name])
        if len(names) > 1 and ranks[names[0]] == ranks[names[1]]:
            self.guesses.append(f"{names[0]} was taken for the main (denoised) stream; {names[1]} may be it")
        return tuple(names)

    def _remark(self, items: range) -> None:
        last = self._calls[-1]
        for item in items:
            used = [call for call in self._calls if self._used_elsewhere(call, item)]
            name = self._into.get(item)
            if name is None:
                why = "the model collects it, so it is held" if used else "nobody uses it"
                self.remarks.append(f"item {item} of what the blocks return is no stream: {why}")
            elif any(call is not last for call in used):
                self.remarks.append(
                    f"what its inner blocks give as {name} is used elsewhere too (by a skip, or collected): see that a "
                    "span which hides them is right"
                )
            elif last.items[item] is not None and not self._seen.reaches_output(Given(last.number, item)):
                self.remarks.append(f"nobody uses the last {name}")
            if any(call.items[item] is None for call in self._calls):
                self.remarks.append(f"{name or f'item {item}'} may come out as None")

    def _used_elsewhere(self, call: BlockCall, item: int) -> bool:
        given = Given(call.number, item)
        following = {two.number for one, two in self._onward if one is call}
        return given in self._seen.output or any(
            given in sources
            for other in self._seen.calls[call.number + 1 :]
            for sources in other.sources.values()
            if other.number not in following
        )


def shape_of(value: Any) -> Any:
    """The shape of a tensor; None of anything else."""
    return value.shape if isinstance(value, Tensor) else None
