"""The models that are measured: FLUX's transformer with random weights, in shapes where one thing decides."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

CLOSE = 0.01
"""How far the second input lies from the first, in its own deviation: a difference that every threshold below skips
and every one near 0 does not."""


@dataclass(frozen=True)
class Shape:
    """A FLUX transformer and what it is called with."""

    name: str
    double: int
    single: int
    heads: int
    head_dim: int
    image_tokens: int
    text_tokens: int
    channels: int = 16
    """Of a latent token."""
    text_width: int = 32
    batch: int = 1

    @property
    def blocks(self) -> int:
        """Blocks that a dense step runs."""
        return self.double + self.single

    @property
    def width(self) -> int:
        """Of both streams."""
        return self.heads * self.head_dim

    def words(self) -> str:
        """What it is, in a line."""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return (
            f"{self.double}+{self.single} blocks, dim {self.width}, {self.image_tokens}+{self.text_tokens} "
            f"tokens{batch}"
        )


ARITHMETIC = Shape("flux-512", 6, 12, 8, 64, 1024, 128, channels=64, text_width=512)
"""Time goes into matrix products, as on every model of use."""
PYTHON = Shape("python-bound", 19, 38, 2, 16, 16, 4)
"""FLUX.1's 57 blocks with next to no arithmetic in them: time goes into Python, and every call is seen."""
DEMO = Shape("demo-like", 4, 8, 4, 32, 64, 16)
"""As the demo model: some of both."""
SHAPES = {shape.name: shape for shape in (ARITHMETIC, PYTHON, DEMO)}


def small(shape: Shape) -> Shape:
    """The same kind of shape, small enough for a test."""
    if shape.width > 64:
        return replace(shape, double=2, single=3, heads=2, head_dim=32, image_tokens=64, text_tokens=16)
    return replace(shape, double=3, single=5)


def make_model(shape: Shape, seed: int = 0) -> Any:
    """A FLUX transformer of ``shape`` with random weights, in float32."""
    from diffusers import FluxTransformer2DModel

    dim = shape.head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (
            FluxTransformer2DModel(
                patch_size=1,
                in_channels=shape.channels,
                num_layers=shape.double,
                num_single_layers=shape.single,
                attention_head_dim=dim,
                num_attention_heads=shape.heads,
                joint_attention_dim=shape.text_width,
                pooled_projection_dim=shape.text_width,
                axes_dims_rope=(dim // 2, dim // 4, dim // 4),
            )
            .eval()
            .requires_grad_(False)
        )


def make_inputs(shape: Shape, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of two calls that differ by little (``CLOSE``) in the latents, as a pipeline would give them."""
    noise = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(shape.batch, *size, generator=noise)

    latents = random(shape.image_tokens, shape.channels)
    first = {
        "hidden_states": latents,
        "encoder_hidden_states": random(shape.text_tokens, shape.text_width),
        "pooled_projections": random(shape.text_width),
        "img_ids": torch.zeros(shape.image_tokens, 3),
        "txt_ids": torch.zeros(shape.text_tokens, 3),
        "timestep": torch.full((shape.batch,), 0.5),
        "return_dict": False,
    }
    return first, {**first, "hidden_states": latents + CLOSE * random(shape.image_tokens, shape.channels)}


class _Added(nn.Module):
    """Stands where the skipped blocks were: adds what they would have."""

    def __init__(self, residual: Tensor) -> None:
        super().__init__()
        self.residual = residual

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        return encoder_hidden_states, self.residual + hidden_states


def make_ideal(model: Any, shape: Shape) -> Any:
    """The least that a cached step can be: embedding, one block, one addition, norm and projection.

    It shares every module that it has with ``model``.
    """
    ideal = copy.copy(model)
    ideal.__dict__ = dict(vars(model))
    residual = torch.zeros(shape.batch, shape.image_tokens, shape.width)
    ideal._modules = dict(model._modules)
    ideal._modules["transformer_blocks"] = nn.ModuleList([model.transformer_blocks[0], _Added(residual)])
    ideal._modules["single_transformer_blocks"] = nn.ModuleList()
    return ideal
