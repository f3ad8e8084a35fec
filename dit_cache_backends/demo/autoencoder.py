"""The demo's autoencoder: 64x64 pixels to a whitened 4-channel latent of 16x16 and back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dit_cache_backends.demo.scenes import draw, random_scene

BATCH = 16
# Steps, learning rate, weight of the KL, weight of the things over the ground.
PHASES = ((700, 2e-3, 2e-3, 1.0), (500, 1.5e-3, 1e-4, 5.0))
# Steps, learning rate, and how far the things of its pictures wander: at last only as far as they are painted.
DECODER_PHASES = ((1500, 1.5e-3, 1.0), (1200, 1e-3, 0.4))
DECODER_NOISE = 0.2  # most; latents that the transformer makes are a little off, too

Spoil = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


def build() -> Any:
    """An untrained `AutoencoderKL` of three levels (factor 4)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 48),
        latent_channels=4,
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def pixels(pictures: list[Any]) -> torch.Tensor:
    """Pictures as a float32 tensor (n, 3, height, width) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn(count: int, seed: int, wander: float) -> tuple[list[str], torch.Tensor]:
    """`count` scenes of the training set: sentences, and pixels as uint8 (count, 3, 64, 64)."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    arrays = np.stack([np.asarray(draw(scene, rng, wander)) for scene in scenes])
    return [scene.prompt for scene in scenes], torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def train(vae: Any, images: torch.Tensor, seed: int, device: str, log: Any = print) -> None:
    """Trains and whitens `vae` in place on uint8 pictures (n, 3, 64, 64), phase by phase."""
    for phase, (steps, rate, kl_weight, thing_weight) in enumerate(PHASES):
        _train(vae, images, steps, rate, kl_weight, thing_weight, seed + phase, device, log)
        whiten(vae, encode(vae, images[:4000], device))


def _train(
    vae: Any,
    images: torch.Tensor,
    steps: int,
    rate: float,
    kl_weight: float,
    thing_weight: float,
    seed: int,
    device: str,
    log: Any,
) -> None:
    """Reconstruction (L1 and squared error) with a little KL, one cosine of the learning rate to 0."""
    vae.to(device).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 30) * 0.5 * (1 + np.cos(np.pi * min(1.0, s / steps)))
    )
    generator = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        x = images[chosen].to(device).float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        error = y - x
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = (_weight(x, thing_weight) * (error.abs() + error.square())).mean() + kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            found = f"L1 {error.abs().mean():.4f} KL {kl:.3f} noise {posterior.std.mean():.3f}"
            log(f"autoencoder step {step}/{steps} {found} {time.perf_counter() - began:.0f} s")
    vae.eval().requires_grad_(False)


def train_decoder(vae: Any, count: int, seed: int, device: str, log: Any = print) -> None:
    """Goes on with the decoder alone, in place and phase by phase, each with `count` pictures of its own."""

    def spoil(latents: torch.Tensor, _: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        strength = DECODER_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
        return latents + strength * torch.randn(latents.shape, generator=generator)

    for phase, (steps, rate, wander) in enumerate(DECODER_PHASES):
        _, images = drawn(count, seed + phase, wander)
        fit_decoder(vae, images, spoil, steps, rate, seed + 10 + phase, device, log)


def fit_decoder(
    vae: Any, images: torch.Tensor, spoil: Spoil, steps: int, rate: float, seed: int, device: str, log: Any
) -> None:
    """Trains the decoder to find uint8 `images` (n, 3, 64, 64) in latents of the frozen encoder that were spoiled.

    `spoil` takes latents (b, 4, 16, 16), their rows in `images` (b,) and a generator, and gives latents.
    """
    vae.to(device).eval().requires_grad_(False)
    latents = encode(vae, images, device)
    vae.to(memory_format=torch.channels_last)  # an eighth faster on a CPU
    parts = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv]).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=1e-4, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 30)
            group["lr"] = rate * warm * 0.5 * (1 + np.cos(np.pi * step / steps))
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        x = images[chosen].to(device).float() / 127.5 - 1
        z = spoil(latents[chosen], chosen, generator)
        error = vae.decode(z.to(device)).sample - x
        loss = (_weight(x, 5.0) * (error.abs() + error.square())).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - began
            log(f"decoder step {step}/{steps} L1 {error.abs().mean():.4f} {seconds:.0f} s")
    vae.eval().requires_grad_(False)


def _weight(x: torch.Tensor, of_things: float) -> torch.Tensor:
    """Small things are few pixels: without a weight their colours and corners come last."""
    thing = ((x - x[:, :, :1, :1]).abs().sum(1, keepdim=True) > 0.1).float()
    weight: torch.Tensor = 1 + (of_things - 1) * thing
    return weight


@torch.no_grad()
def encode(vae: Any, images: torch.Tensor, device: str) -> torch.Tensor:
    """The latents' means, (n, 4, 16, 16) float32 on the CPU, of uint8 pictures (n, 3, 64, 64)."""
    pieces = (images[begin : begin + 64].to(device) for begin in range(0, len(images), 64))
    return torch.cat([vae.encode(piece.float() / 127.5 - 1).latent_dist.mean.cpu() for piece in pieces])


@torch.no_grad()
def whiten(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Folds a 4x4 whitening of the latent channels into the two 1x1 convolutions; returns the new latents.

    Unlike a scaling factor this also evens out and decorrelates the channels, and being 1x1 it is exact.
    """
    last = latents.permute(0, 2, 3, 1)
    flat = last.reshape(-1, latents.shape[1]).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    forward = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    backward = vectors @ torch.diag(values.sqrt()) @ vectors.T
    c = latents.shape[1]
    quant, post = vae.quant_conv, vae.post_quant_conv
    before, bias = quant.weight[:, :, 0, 0].double(), quant.bias.double()
    quant.weight[:c, :, 0, 0] = (forward @ before[:c].cpu()).to(quant.weight)
    quant.bias[:c] = (forward @ (bias[:c].cpu() - mean)).to(quant.bias)
    after = post.weight[:, :, 0, 0].double().cpu()
    post.bias += (after @ mean).to(post.bias)
    post.weight[:, :, 0, 0] = (after @ backward).to(post.weight)
    white: torch.Tensor = ((flat - mean) @ forward.T).float().reshape(last.shape).permute(0, 3, 1, 2)
    return white
