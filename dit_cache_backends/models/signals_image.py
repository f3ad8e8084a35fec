"""More signals: the modulated input of the first block, as further image transformers make it."""

from typing import Any

from torch import Tensor

from dit_cache_backends.models.signals import E, Given, H, T


def cogview3(block: Any, given: Given) -> Tensor:
    """CogView3-Plus: as CogView4 and GLM-Image, with the embedding under another name."""
    modulated: Tensor = block.norm1(given(H), given(E), given("emb"))[0]
    return modulated


def ernie_image(block: Any, given: Given) -> Tensor:
    """ERNIE-Image, ``[tokens, batch, dim]``: one modulation for all blocks, in float32."""
    shift, scale = given(T)[:2]
    normed = block.adaLN_sa_ln(given("x"))
    modulated: Tensor = (normed.float() * (1 + scale.float()) + shift.float()).to(normed.dtype)
    return modulated


def flux3(block: Any, given: Given) -> Tensor:
    """FLUX.3: the modulation comes with the call, one for each token."""
    shift, scale, _ = given("temb_mod").chunk(3, dim=-1)
    modulated: Tensor = (1 + scale) * block.norm(given(H)) + shift
    return modulated


def ideogram4(block: Any, given: Given) -> Tensor:
    """Ideogram 4: scaled, not shifted."""
    scale = block.adaln_modulation(given("adaln_input")).chunk(4, dim=-1)[0]
    modulated: Tensor = block.attention_norm1(given(H)) * (1.0 + scale)
    return modulated


def joyimage(block: Any, given: Given) -> Tensor:
    """JoyImage-Edit: a table of the block's own is added to the modulation of all."""
    shift, scale = block.img_mod(given(T))[:2]
    modulated: Tensor = block.img_norm1(given(H)) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    return modulated


def krea2(block: Any, given: Given) -> Tensor:
    """Krea 2: as JoyImage-Edit, the scale before the shift."""
    scale, shift = (given(T).unflatten(-1, (6, -1)) + block.scale_shift_table).unbind(-2)[:2]
    modulated: Tensor = (1.0 + scale) * block.norm1(given(H)) + shift
    return modulated


def nucleus_moe(block: Any, given: Given) -> Tensor:
    """Nucleus-MoE: scaled, not shifted."""
    scale = block.img_mod(given(T)).unsqueeze(1).chunk(4, dim=-1)[0]
    modulated: Tensor = block.pre_attn_norm(given(H)) * (1 + scale)
    return modulated


def omnigen(block: Any, given: Given) -> Tensor:
    """OmniGen: the time is a token of the sequence, not a modulation."""
    normed: Tensor = block.input_layernorm(given(H))
    return normed


def prx(block: Any, given: Given) -> Tensor:
    """PRX."""
    shift, scale, _ = block.modulation(given(T))[0]
    modulated: Tensor = (1 + scale) * block.img_pre_norm(given(H)) + shift
    return modulated


def qwen_image21(block: Any, given: Given) -> Tensor:
    """Qwen-Image 2.1: text and pictures to edit have the modulation of time 0."""
    modulation = given("modulation").chunk(2, dim=-1)[0]
    modulated: Tensor = block._modulate(block.img_norm1(given(H)), modulation, given("target_token_mask"))[0]
    return modulated
