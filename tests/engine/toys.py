"""Toy transformers: each does one thing to its streams that a model may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends import BlockList, Card, stack

DIM = 8
H, E = "hidden_states", "encoder_hidden_states"

Move = Callable[["ToyBlock", Tensor, Any], Any]


class ToyBlock(nn.Module):
    def __init__(self, move: Move) -> None:
        super().__init__()
        self.move = move
        self.inner = nn.Linear(DIM, DIM)
        self.text = nn.Linear(DIM, DIM)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Any:
        return self.move(self, hidden_states, encoder_hidden_states)

    def added(self, h: Tensor) -> Tensor:
        return torch.tanh(self.inner(h))


class Toy(nn.Module):
    """Runs its blocks in turn. ``keywords``: the streams go in by name. ``passes``: how often the stack is run."""

    def __init__(self, *moves: Move, keywords: bool = False, passes: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(ToyBlock(move) for move in moves)
        self.keywords = keywords
        self.passes = passes
        self.eval()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> tuple[Tensor]:
        h: Any = hidden_states.clone()
        e: Any = None if encoder_hidden_states is None else encoder_hidden_states.clone()
        for _ in range(self.passes):
            for block in self.blocks:
                out = block(hidden_states=h, encoder_hidden_states=e) if self.keywords else block(h, e)
                if isinstance(out, Tensor):
                    h = out
                else:
                    h, e = out
        return (h if e is None else h + e.mean(1, keepdim=True),)


def adds(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    return h + block.added(h)


def writes_into(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    return h.add_(block.added(h))


def writes_and_copies(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    h.add_(block.added(h))
    return h + 0


def passes_on(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    block.inner(h)
    return h


def adds_to_both(block: ToyBlock, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    return h + block.added(h) + e.mean(1, keepdim=True), e + block.text(e)


def adds_to_both_in_a_list(block: ToyBlock, h: Tensor, e: Tensor) -> list[Tensor]:
    return list(adds_to_both(block, h, e))


def leaves_the_text(block: ToyBlock, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    return h + block.added(h) + e.mean(1, keepdim=True), e


def writes_into_the_text(block: ToyBlock, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    e.add_(block.text(e))
    return h + block.added(h) + e.mean(1, keepdim=True), e


def drops_the_text(block: ToyBlock, h: Tensor, e: Tensor) -> tuple[Tensor, None]:
    return h + block.added(h) + e.mean(1, keepdim=True), None


def makes_a_text(block: ToyBlock, h: Tensor, e: Tensor | None) -> tuple[Tensor, Tensor]:
    return h + block.added(h), h * 2 if e is None else e + block.text(e)


def lengthens(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    return torch.cat([h, block.added(h)], dim=1)


def halves_the_precision(block: ToyBlock, h: Tensor, e: Any) -> Tensor:
    return (h + block.added(h)).bfloat16()


def wraps(block: ToyBlock, h: Tensor, e: Any) -> dict[str, Tensor]:
    return {"sample": h + block.added(h)}


def card(
    takes: tuple[str, ...] = (H,), gives: str | tuple[str, ...] = H, path: str = "blocks", **more: Any
) -> Card:
    """A card of the toy."""
    return Card("Toy", (stack(BlockList(path, takes, gives)),), library=None, **more)


ONE = card()
BOTH = card((H, E), (H, E))


def image(batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, DIM, generator=torch.Generator().manual_seed(seed))


def text(batch: int = 2, seed: int = 2, tokens: int = 3) -> Tensor:
    return torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(seed))
