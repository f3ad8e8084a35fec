"""The decoder's last lesson: to draw sharply what the transformer, not the encoder, makes of a scene."""

from __future__ import annotations

from typing import Any

import torch

from dit_cache_backends.demo import assembly, autoencoder, flow

# Steps and learning rate, one after each phase of the transformer.
PHASES = ((800, 8e-4), (500, 6e-4), (350, 5e-4))
MOST_NOISE = 0.4  # above it the transformer no longer finds the very scene again
SCENES = 8000


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (n, c, h, w) as the transformer's tokens (n, h/2 * w/2, 4c), as FLUX orders them."""
    n, c, h, w = latents.shape
    squares = latents.reshape(n, c, h // 2, 2, w // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def unpack(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """The inverse of `pack` for square latents of `side`."""
    n, _, width = tokens.shape
    squares = tokens.reshape(n, side // 2, side // 2, width // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(n, width // 4, side, side)


def polish(pipeline: Any, steps: int, rate: float, seed: int, device: str, log: Any = print) -> None:
    """Trains the pipeline's decoder, in place, on latents to which the transformer's errors were added.

    Each latent is mixed with noise, a share of at most `MOST_NOISE`, and the transformer says in one step what
    was there: its own kind of blur, which no added noise has.
    """
    model = pipeline.transformer
    prompts, images = autoencoder.drawn(SCENES, seed, wander=0.4)
    unique = list(dict.fromkeys(prompts))
    place = {prompt: row for row, prompt in enumerate(unique)}
    rows = torch.tensor([place[prompt] for prompt in prompts])
    tokens, pooled = assembly.embed(pipeline, unique)

    @torch.no_grad()
    def spoil(latents: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        data = pack(latents)
        share = MOST_NOISE * torch.rand(len(data), 1, 1, generator=generator)
        mixed = (1 - share) * data + share * torch.randn(data.shape, generator=generator)
        text = (tokens[rows[chosen]].to(device), pooled[rows[chosen]].to(device))
        velocity = flow.velocity(model, mixed.to(device), share.flatten().to(device), *text)
        return unpack(mixed - share * velocity.cpu(), latents.shape[-1])

    autoencoder.fit_decoder(pipeline.vae, images, spoil, steps, rate, seed, device, log)
