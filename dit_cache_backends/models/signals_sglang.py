"""More signals: the modulated input of the first block, as the transformers of SGLang-Diffusion 0.5.23 make it.

Its linear layers give a pair of the product and a bias, and its norms take shift and scale themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_cache_backends.models.signals import Given, H, T


def flux2(block: Any, given: Given) -> Tensor:
    """FLUX.2: the modulation comes with the call, shift, scale and gate of each half of the block."""
    shift, scale, _ = given("temb_mod_params_img")[0]
    modulated: Tensor = block.norm1(given(H)) * (1 + scale) + shift
    return modulated


def qwen_image(block: Any, given: Given) -> Tensor:
    """Qwen-Image: the block's own modulation, where a picture to edit may have one of its own."""
    modulation = _linear(block.img_mod[1], given("temb_img_silu"))
    modulated: Tensor = block._modulate(
        given(H), modulation.chunk(2, dim=-1)[0], block.img_norm1, given("modulate_index")
    )[0]
    return modulated


def hunyuan_video(block: Any, given: Given) -> Tensor:
    """HunyuanVideo: the block's own modulation of the video."""
    shift, scale = block.img_mod(given("vec")).chunk(6, dim=-1)[:2]
    modulated: Tensor = block.img_attn_norm(given("img"), shift, scale)
    return modulated


def z_image(block: Any, given: Given) -> Tensor:
    """Z-Image: scaled, not shifted."""
    scale = _linear(block.adaLN_modulation, given("adaln_input"))[:, None].chunk(4, dim=-1)[0]
    modulated: Tensor = block.attention_norm1(given("x")) * (1 + scale)
    return modulated


def krea2(block: Any, given: Given) -> Tensor:
    """Krea 2: a table of the block's own is added to the modulation of all, the scale before the shift."""
    scale, shift = (given("vec") + block.scale_shift_table.reshape(-1)).chunk(6, dim=-1)[:2]
    modulated: Tensor = (1 + scale) * block.norm1(given(H)) + shift
    return modulated


def ernie_image(block: Any, given: Given) -> Tensor:
    """ERNIE-Image: one modulation for all blocks, in pieces."""
    modulated: Tensor = block.adaLN_sa_ln(given("x")) * (1 + given("scale_msa")) + given("shift_msa")
    return modulated


def anima(block: Any, given: Given) -> Tensor:
    """Anima: the norm makes the modulation itself."""
    modulated: Tensor = block.norm1(given(H), given("embedded_timestep"), given(T))[0]
    return modulated


def ideogram4(block: Any, given: Given) -> Tensor:
    """Ideogram 4: scaled, not shifted."""
    scale = block.adaln_modulation(given("adaln_input")).chunk(4, dim=-1)[0]
    modulated: Tensor = block.attention_norm1(given("x")) * (1 + scale)
    return modulated


def wan_time(model: Any, timesteps: Tensor, dtype: torch.dtype, given: Given) -> Tensor:
    """Wan, ``[n, dim]``: the time embedding before it is projected (``temb``)."""
    embedded: Tensor = model.condition_embedder.time_embedder(timesteps)
    return embedded.to(dtype)


def wan_time_projection(model: Any, timesteps: Tensor, dtype: torch.dtype, given: Given) -> Tensor:
    """Wan, ``[n, 6 * dim]``: the projected time embedding that modulates the blocks (``timestep_proj``)."""
    projected: Tensor = model.condition_embedder.time_modulation(wan_time(model, timesteps, dtype, given))
    return projected


def _linear(layer: Any, given: Any) -> Tensor:
    """The product that a linear layer of SGLang gives first."""
    product: Tensor = layer(given)[0]
    return product
