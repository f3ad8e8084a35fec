"""Transformers that nobody knows, each with something that a card has to say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DIM = 8


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))


class Both(nn.Module):
    """Text first in the signature and first in what it returns, although the image is what is denoised."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.text = _mlp(), _mlp()

    def forward(self, prompt: Tensor, picture: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return prompt + self.text(prompt), picture + self.inner(picture * time) + prompt.mean(1, keepdim=True)


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _mlp()

    def forward(self, tokens: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        return tokens + self.inner(tokens * scale)


class Stranger(nn.Module):
    """Two towers of text, double blocks, then single blocks on the joined tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.refiner = nn.ModuleList(One() for _ in range(2))
        self.first = nn.ModuleList(Both() for _ in range(3))
        self.second = nn.Sequential(*(One() for _ in range(4)))
        self.spare = nn.ModuleList(One() for _ in range(2))
        self.out = nn.Linear(DIM, DIM)

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        for block in self.refiner:
            text = block(text)
        image = latents * 1.0
        for block in self.first:
            text, image = block(picture=image, prompt=text, time=time)
        tokens = self.second(torch.cat([text, image], 1))
        return (self.out(tokens[:, text.shape[1] :]),)


class Rewraps(nn.Module):
    """Adds to both streams between the blocks, with as many text tokens as image tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Both() for _ in range(4))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        image = latents * 1.0
        for number, block in enumerate(self.blocks):
            text, image = block(text, image, time)
            image, text = image + 0.1 * number, text * 0.9
        return (image,)


class Writes(nn.Module):
    """Its blocks write into what they are given."""

    class Block(One):
        def forward(self, tokens: Tensor, scale: Tensor | float = 1.0) -> Tensor:
            return tokens.add_(self.inner(tokens * scale))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        image = latents + text.mean(1, keepdim=True)
        for block in self.blocks:
            image = block(image, time)
        return (image,)


class Collects(nn.Module):
    """Each block gives a hint beside its stream, which the model keeps for later."""

    class Block(One):
        def __init__(self) -> None:
            super().__init__()
            self.hint = nn.Linear(DIM, DIM)

        def forward(self, tokens: Tensor, scale: Tensor | float = 1.0) -> Any:
            tokens = super().forward(tokens, scale)
            return self.hint(tokens), tokens

    def __init__(self) -> None:
        super().__init__()
        self.control = nn.ModuleList(self.Block() for _ in range(3))
        self.blocks = nn.ModuleList(One() for _ in range(3))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        image = latents + text.mean(1, keepdim=True)
        control, hints = image * 0.5, []
        for block in self.control:
            hint, control = block(control, time)
            hints.append(hint)
        for hint, block in zip(hints, self.blocks, strict=True):
            image = block(image, time) + hint
        return (image,)


class Skips(nn.Module):
    """A U: what a block of the first half gives goes to its mirror image too."""

    class Block(One):
        def forward(self, tokens: Tensor, scale: Tensor | float = 1.0, skip: Tensor | None = None) -> Tensor:
            return super().forward(tokens if skip is None else 0.5 * (tokens + skip), scale)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(6))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        image, kept = latents + text.mean(1, keepdim=True), []
        for number, block in enumerate(self.blocks):
            image = block(image, time, kept.pop() if number >= 4 else None)
            if number < 2:
                kept.append(image)
        return (image,)


class Turns(nn.Module):
    """Rows of the picture, then its columns, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleList(One() for _ in range(3))
        self.columns = nn.ModuleList(One() for _ in range(3))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        batch, tokens, dim = latents.shape
        image = (latents + text.mean(1, keepdim=True)).reshape(batch * 2, tokens // 2, dim)
        for row, column in zip(self.rows, self.columns, strict=True):
            image = row(image, time)
            image = image.reshape(batch, 2, tokens // 2, dim).transpose(1, 2).reshape(-1, 2, dim)
            image = column(image, time)
            image = image.reshape(batch, tokens // 2, 2, dim).transpose(1, 2).reshape(-1, tokens // 2, dim)
        return (image.reshape(latents.shape),)


class Anew(nn.Module):
    """The second half of the list begins with the latents again and looks at what the first half made."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Both() for _ in range(6))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        image = latents * 1.0
        for number, block in enumerate(self.blocks):
            if number == 3:
                text, image = image * 1.0, latents * 2.0
            text, image = block(text, image, time)
        return (image,)


class Within(nn.Module):
    """Its blocks are in a module that is itself in a list, beside another one that is no stack."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Rewraps() for _ in range(2))

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor]:
        return (sum(tower(latents, text, time)[0] for tower in self.towers),)


STRANGERS = (Stranger, Rewraps, Writes, Collects, Skips, Turns, Anew, Within)


def stranger(cls: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls().eval().requires_grad_(False)


def arguments(seed: int = 0, moved: float = 0.0) -> dict[str, Any]:
    """As many text tokens as image tokens, so that shapes tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    latents, drift, text = (torch.randn(1, 8, DIM, generator=generator) for _ in range(3))
    return {"latents": latents + moved * drift, "text": text, "time": torch.tensor([[[0.7]]])}
