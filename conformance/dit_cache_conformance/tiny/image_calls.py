"""The arguments of a call of each tiny image transformer in `image.py`, at a moment of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .configs import TEXT_DIM, TEXT_TOKENS

if TYPE_CHECKING:
    from .spec import Moment

SIDE = 4
TOKENS = SIDE * SIDE


def _ids(tokens: int, axes: int, first: int = 0) -> torch.Tensor:
    """Positions of `tokens` tokens in rows of `SIDE`; `first` tells one picture from another."""
    ids = torch.zeros(tokens, axes)
    ids[:, 0] = first
    ids[:, 1] = torch.arange(tokens) // SIDE
    ids[:, 2] = torch.arange(tokens) % SIDE
    return ids


def latents(at: Moment, scale: float = 1000.0) -> dict[str, Any]:
    """A picture as latents of 4 channels, a prompt, and the time."""
    return {
        "hidden_states": at.latents(4, 8, 8),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(scale),
    }


def packed(at: Moment) -> dict[str, Any]:
    """A picture as tokens with positions, as FLUX.1 has it."""
    return {
        "hidden_states": at.latents(TOKENS, 16),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1.0),
        "img_ids": _ids(TOKENS, 3),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def auraflow(at: Moment) -> dict[str, Any]:
    return latents(at, 1.0)


def bria(at: Moment) -> dict[str, Any]:
    return packed(at) | {"timestep": at.times(1000.0)}


def bria_controlled(at: Moment) -> dict[str, Any]:
    control = [0.5 * at.fixed(TOKENS, 32, part=10 + index) for index in range(2)]
    return bria(at) | {"controlnet_block_samples": control}


def bria_fibo(at: Moment) -> dict[str, Any]:
    layers = [at.fixed(TEXT_TOKENS, 24, part=10 + index) for index in range(8)]
    return bria(at) | {"text_encoder_layers": layers}


def bria_fibo2(at: Moment) -> dict[str, Any]:
    text = torch.stack([at.fixed(TEXT_TOKENS, TEXT_DIM, part=index) for index in range(3)], dim=1)
    return latents(at, 1.0) | {"encoder_hidden_states": text}


def bria_fibo2_edit(at: Moment) -> dict[str, Any]:
    return bria_fibo2(at) | {"context_latents": [at.fixed(4, 4, 8, part=20)]}


def cogview(at: Moment) -> dict[str, Any]:
    sizes = torch.tensor([[64.0, 64.0]]).expand(at.batch, -1)
    return latents(at) | {"original_size": sizes, "target_size": sizes, "crop_coords": 0 * sizes}


def ernie_image(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(4, SIDE, SIDE),
        "timestep": at.times(1000.0),
        "text_bth": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "text_lens": torch.full((at.batch,), TEXT_TOKENS - 2),
    }


def flux3(at: Moment) -> dict[str, Any]:
    return packed(at) | {"img_ids": _ids(TOKENS, 4), "txt_ids": torch.zeros(TEXT_TOKENS, 4)}


def flux3_edit(at: Moment) -> dict[str, Any]:
    """With a picture to go by, whose own blocks are called then."""
    return flux3(at) | {
        "image_cond_hidden_states": at.fixed(8, 12, part=5),
        "image_cond_ids": _ids(8, 4, first=1),
    }


def hunyuan_dit(at: Moment) -> dict[str, Any]:
    angles = torch.outer(torch.arange(TOKENS), torch.arange(1, 9) / 8).repeat_interleave(2, dim=1)
    return latents(at) | {
        "text_embedding_mask": torch.ones(at.batch, TEXT_TOKENS),
        "encoder_hidden_states_t5": at.fixed(TEXT_TOKENS, 24, part=1),
        "text_embedding_mask_t5": torch.ones(at.batch, TEXT_TOKENS),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]])
        .expand(at.batch, -1)
        .contiguous(),
        "style": torch.zeros(at.batch, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def hunyuan_dit_controlled(at: Moment) -> dict[str, Any]:
    """The model takes them out of the list that it is given."""
    control = [0.5 * at.fixed(TOKENS, 32, part=10 + index) for index in range(3)]
    return hunyuan_dit(at) | {"controlnet_block_samples": control}


def hunyuan_image(at: Moment) -> dict[str, Any]:
    return latents(at) | {"encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS)}


def ideogram4(at: Moment) -> dict[str, Any]:
    tokens, text = TEXT_TOKENS + TOKENS, torch.zeros(TEXT_TOKENS, 3)
    return {
        "hidden_states": at.latents(tokens, 16),
        "encoder_hidden_states": at.fixed(tokens, TEXT_DIM),
        "timestep": at.times(1.0),
        "position_ids": torch.cat([text, _ids(TOKENS, 3, first=1)]).expand(at.batch, -1, -1),
        "segment_ids": torch.zeros(at.batch, tokens, dtype=torch.long),
        "indicator": torch.tensor([3] * TEXT_TOKENS + [2] * TOKENS).expand(at.batch, -1),
    }


def joyimage_edit(at: Moment) -> dict[str, Any]:
    """The picture to come and the one that is edited, as two items."""
    both = torch.cat([at.fixed(1, 4, 1, 8, 8, part=3), at.latents(1, 4, 1, 8, 8)], dim=1)
    return latents(at) | {"hidden_states": both}


def joyimage_edit_plus(at: Moment) -> dict[str, Any]:
    patches = torch.cat([at.latents(TOKENS, 4, 1, 2, 2), at.fixed(8, 4, 1, 2, 2, part=3)], dim=1)
    return latents(at) | {
        "hidden_states": patches,
        "encoder_hidden_states_mask": torch.ones(at.batch, TEXT_TOKENS),
        "shape_list": [[(1, SIDE, SIDE), (1, 2, SIDE)]] * at.batch,
    }


def krea2(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(TOKENS, 16),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, 3, TEXT_DIM),
        "timestep": at.times(1.0),
        "position_ids": torch.cat([torch.zeros(TEXT_TOKENS, 3), _ids(TOKENS, 3)]),
        "encoder_attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool),
    }


def latte(at: Moment) -> dict[str, Any]:
    """2 frames of 16 patches."""
    return latents(at) | {"hidden_states": at.latents(4, 2, 8, 8)}


def latte_square(at: Moment) -> dict[str, Any]:
    """4 frames of 4 patches: both layouts of the main stream have the same shape."""
    return latents(at) | {"hidden_states": at.latents(4, 4, 4, 4)}


def nucleus_moe(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(TOKENS, 16),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "timestep": at.times(1.0),
        "img_shapes": [(1, SIDE, SIDE)] * at.batch,
    }


def omnigen(at: Moment) -> dict[str, Any]:
    """A prompt of ids with a picture of 4 patches among them."""
    tokens = 12 + 1 + TOKENS
    return {
        "hidden_states": at.latents(4, 8, 8),
        "timestep": at.times(1.0),
        "input_ids": (torch.arange(12) % 10).expand(at.batch, -1),
        "input_img_latents": list(at.fixed(1, 4, 4, 4)[:, 0].split(1)),
        "input_image_sizes": {row: [[4, 8]] for row in range(at.batch)},
        "attention_mask": torch.ones(at.batch, tokens, tokens),
        "position_ids": torch.arange(tokens).expand(at.batch, -1),
    }


def prior(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(16),
        "timestep": at.times(1000.0),
        "proj_embedding": at.fixed(16, part=1),
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, 16),
        "attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool),
    }


def prx(at: Moment) -> dict[str, Any]:
    return latents(at, 1.0) | {"attention_mask": torch.ones(at.batch, TEXT_TOKENS, dtype=torch.bool)}


def sana_controlled(at: Moment) -> dict[str, Any]:
    control = [0.5 * at.fixed(TOKENS, 32, part=10 + index) for index in range(3)]
    return latents(at) | {"controlnet_block_samples": tuple(control)}


def uvit2d(at: Moment) -> dict[str, Any]:
    """Ids of a codebook, of which some change from step to step, and no time."""
    ids = (at.latents(8, 8) * 8).round().long().remainder(32)
    return {
        "input_ids": ids,
        "encoder_hidden_states": at.fixed(TEXT_TOKENS, TEXT_DIM),
        "pooled_text_emb": at.fixed(16, part=1),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]]).expand(at.batch, -1).contiguous(),
    }
