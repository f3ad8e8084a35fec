"""A card worked out from one forward, for a model that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_cache_backends.errors import AlreadyEnabledError, CardError
from dit_cache_backends.models import uncompiled
from dit_cache_backends.models.card import BlockList, Card, Stack
from dit_cache_backends.models.findings import LAYOUTS, Findings, FoundList
from dit_cache_backends.models.trace import kind, repeated_blocks, trace


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found, as a card to paste (``str``) and as a card to use (``card``)."""

    transformer: str
    library: str
    stacks: tuple[Stack, ...]
    """Through which image and text both run, or what is made of them."""
    side: tuple[BlockList, ...]
    """Of the text or the latents alone: refiners, text towers. Left out of the card."""
    lists: tuple[FoundList, ...]
    writes_in_place: bool
    remarks: tuple[str, ...]
    """What to look at before the card is used."""

    @property
    def guesses(self) -> tuple[str, ...]:
        """What is not proven by where the tensors went."""
        return tuple(guess for each in self.lists for guess in each.guesses)

    @property
    def card(self) -> Card:
        """The card.

        Raises:
            CardError: if no list of blocks was found whose streams data alone can say.
        """
        if not self.stacks:
            raise CardError(
                f"No card can be made for {self.transformer} from what was seen. {' '.join(self.remarks)}"
            )
        return Card(self.transformer, self.stacks, self.library, writes_in_place=self.writes_in_place)

    def code(self) -> str:
        """The card as an expression, with the names that ``dit_cache_backends`` has."""
        self.card  # noqa: B018 (raises where there is none)
        lines = ["Card(", f"    {self.transformer!r},", "    ("]
        for each in self.stacks:
            lines += ["        stack(", *(f"            {_code(blocks)}," for blocks in each.lists)]
            lines += ["            long_skips=True,"] if each.long_skips else []
            lines += [
                f"            alternate={code}," for code, fit in LAYOUTS.items() if fit is each.alternate
            ]
            lines += ["        ),"]
        lines += ["    ),", f"    library={self.library!r},"]
        lines += ["    writes_in_place=True,"] if self.writes_in_place else []
        return "\n".join([*lines, ")"])

    def __str__(self) -> str:
        notes = [f"{each.blocks.path}: {text}" for each in self.lists for text in each.remarks]
        notes += [f"{each.blocks.path}: a GUESS: {text}" for each in self.lists for text in each.guesses]
        notes += [f"left out: {_code(each)}" for each in self.side]
        lines = [f"# {each}" for each in (*notes, *self.remarks)]
        if not self.stacks:
            return "\n".join([*lines, "# No card can be made from this."])
        head = "from dit_cache_backends import BlockList, Card, stack\n"
        return "\n".join([head, *lines, f"card = {self.code()}"])


def inspect_transformer(module: nn.Module, **inputs: Any) -> Inspection:
    """Run ``module(**inputs)`` once and find its repeated blocks, their streams, and the order they come back in.

    That a tensor which a block returned *is* the next one's argument proves where it goes. Where a model works on it in
    between, it is followed through that work. What cannot be seen (which of two streams is the denoised one, where
    both lead to the output; what None stands for) is marked as a guess. With real weights this is one step of the
    model; the weights do not matter, so that a copy with fewer blocks, or on the meta device, does as well.

    Args:
        module: a transformer, or any module that has lists of blocks.
        inputs: the arguments of its forward. None: they are guessed from its signature and its ``config``.

    Raises:
        CardError: if it has no lists of blocks, or if its inputs cannot be guessed.
        AlreadyEnabledError: if a cache is enabled on it, which may skip what is to be seen.
    """
    from dit_cache_backends.engine.wrap import is_attached

    if is_attached(module):
        raise AlreadyEnabledError(
            f"A cache backend is enabled on this {kind(module).__name__}, so its blocks need not all run. Call disable "
            "first."
        )
    if not inputs:
        from dit_cache_backends.models.guess import guess_inputs

        inputs = guess_inputs(module)
    inner = uncompiled(module)
    passed_over: set[str] = set()
    while True:
        seen = trace(module, inputs, passed_over)
        if not seen.blocks and not passed_over:
            raise CardError(
                f"{type(inner).__name__} has no list of blocks of one class (a ModuleList, Sequential or ModuleDict "
                "whose members have modules of their own), so there is nothing to skip."
            )
        found = Findings(seen)
        hidden = {
            path
            for path in seen.blocks
            if path not in found.lists and _has_lists(seen.blocks[path]) and path not in passed_over
        }
        if not hidden:
            break
        passed_over |= hidden
    remarks = list(found.remarks)
    if found.caches():
        remarks.append(
            f"the blocks take {', '.join(found.caches())}: if they fill a store that later calls read, say with "
            "must_run at which arguments of the model they do."
        )
    return Inspection(
        transformer=type(inner).__name__,
        library=type(inner).__module__.partition(".")[0],
        stacks=found.stacks(),
        side=tuple(found.lists[path].blocks for path in found.of_the_text_or_the_latents_alone()),
        lists=found.found(),
        writes_in_place=found.writes_in_place(),
        remarks=tuple(remarks),
    )


def _has_lists(blocks: Iterable[nn.Module]) -> bool:
    return any(repeated_blocks(block) for block in blocks)


def _code(blocks: BlockList) -> str:
    part = "" if blocks.part == (0, None) else f", part={blocks.part!r}"
    return f"BlockList({blocks.path!r}, takes={blocks.takes!r}, gives={blocks.gives!r}{part})"
