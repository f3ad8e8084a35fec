"""More signals: the modulated input of the first block, as vLLM-Omni 0.30's own transformers make it.

Its blocks are written anew for its parallel layers. Where a block's norm and arguments are as in diffusers, the reader
of ``signals.py`` serves.
"""

from typing import Any

import torch
from torch import Tensor

from dit_cache_backends.models.signals import Given, H, T


def qwen_image(block: Any, given: Given) -> Tensor:
    """Qwen-Image: the norm takes scale and shift; each token of a picture to edit may have one of two modulations."""
    values, index = block.img_mod(given(T)).chunk(2, dim=-1)[0], given("modulate_index")
    if index is None:
        shift, scale, _ = values.unsqueeze(1).chunk(3, dim=-1)
    else:
        of_zero, of_one = (half.unsqueeze(1) for half in values.chunk(2, dim=0))
        chosen = torch.where(index.to(torch.bool).unsqueeze(-1), of_one, of_zero)
        shift, scale, _ = chosen.chunk(3, dim=-1)
    modulated: Tensor = block.img_norm1(given(H), scale, shift)
    return modulated


def flux2(block: Any, given: Given) -> Tensor:
    """FLUX.2 and FLUX.2 Klein: the modulation comes with the call, as ``((shift, scale, gate), ...)``."""
    shift, scale, _ = given("temb_mod_params_img")[0]
    modulated: Tensor = (1 + scale) * block.norm1(given(H)) + shift
    return modulated


def z_image(block: Any, given: Given) -> Tensor:
    """Z-Image: scaled, not shifted; always by one modulation."""
    scale = block.adaLN_modulation(given("adaln_input")).unsqueeze(1).chunk(4, dim=2)[0]
    modulated: Tensor = block.attention_norm1(given("x")) * (1.0 + scale)
    return modulated


def ernie_image(block: Any, given: Given) -> Tensor:
    """ERNIE-Image, ``[tokens, batch, dim]``: one modulation for all blocks, in float32."""
    shift, scale = given(T)[:2]
    normed = block.adaLN_sa_ln(given(H))
    modulated: Tensor = (normed.float() * (1 + scale.float()) + shift.float()).to(normed.dtype)
    return modulated


def omnigen2(block: Any, given: Given) -> Tensor:
    """OmniGen2: ``norm1`` takes the embedding by position and modulates itself."""
    modulated: Tensor = block.norm1(given(H), given(T))[0]
    return modulated


def minimax_h3(block: Any, given: Given) -> Tensor:
    """MiniMax-H3: a row of the modulation for each token."""
    rows = given("combined_indices")
    shift, scale, *_ = block.adaln_proj(given("t_emb"))
    modulated: Tensor = block.norm1(given("x")) * (1 + scale.index_select(0, rows)) + shift.index_select(
        0, rows
    )
    return modulated


def lingbot_video(block: Any, given: Given) -> Tensor:
    """LingBot-Video: a modulation for each token, ``[batch * tokens, 6 * dim]``."""
    tokens = given("x")
    values = given("temb6").view(*tokens.shape[:2], -1) + block.scale_shift_table.unsqueeze(0)
    shift, scale = values.chunk(6, dim=-1)[:2]
    modulated: Tensor = block.norm1(tokens) * (1.0 + scale) + shift
    return modulated
