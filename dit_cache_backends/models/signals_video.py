"""More signals: the modulated input of the first block, as further video and audio transformers make it."""

from typing import Any

import torch
from torch import Tensor

from dit_cache_backends.models.signals import Given, H, T


def ace_step(block: Any, given: Given) -> Tensor:
    """ACE-Step: a modulation shared by all blocks, ``[batch, 6, dim]``, and each block's own table."""
    shift, scale = (block.scale_shift_table + given(T)).chunk(6, dim=1)[:2]
    return _as_before(block.self_attn_norm(given(H)), scale, shift, given(H))


def allegro(block: Any, given: Given) -> Tensor:
    """Allegro: as ACE-Step, ``[batch, 6 * dim]``."""
    tokens = given(H)
    values = block.scale_shift_table[None] + given(T).reshape(len(tokens), 6, -1)
    shift, scale = values.chunk(6, dim=1)[:2]
    return _as_before(block.norm1(tokens), scale, shift, tokens)


def each_token(block: Any, given: Given) -> Tensor:
    """AnyFlow and Helios: as Wan, ``[batch, 6, dim]``, or one for each token, ``[batch, tokens, 6, dim]``."""
    tokens, time = given(H), given(T).float()
    values = block.scale_shift_table.reshape(6, -1) + (time if time.dim() == 4 else time[:, None])
    return _as_before(block.norm1(tokens.float()), values[:, :, 1], values[:, :, 0], tokens)


def token_last(block: Any, given: Given) -> Tensor:
    """SkyReels-V2: as Wan, ``[batch, 6, dim]``, or one for each token, ``[batch, 6, tokens, dim]``."""
    tokens, time = given(H), given(T).float()
    values = block.scale_shift_table.reshape(6, 1, -1) + (time if time.dim() == 4 else time[:, :, None])
    return _as_before(block.norm1(tokens.float()), values[:, 1], values[:, 0], tokens)


def wan_animate_2(block: Any, given: Given) -> Tensor:
    """Wan-Animate-2: as Wan, with the table under another name."""
    shift, scale = (block.modulation + given(T)).chunk(6, dim=1)[:2]
    return _as_before(block.norm1(given(H).float()), scale, shift, given(H))


def sana_video(block: Any, given: Given) -> Tensor:
    """SANA-Video: a modulation for the video or for each token, ``[batch, tokens or 1, 6 * dim]``."""
    tokens, time = given(H), given("timestep")
    values = block.scale_shift_table[None, None] + time.reshape(len(tokens), time.shape[1], 6, -1)
    return _as_before(block.norm1(tokens), values[:, :, 1], values[:, :, 0], tokens)


def sana_wm(block: Any, given: Given) -> Tensor:
    """SANA-WM: a modulation for each frame, ``[batch, 1, frames, 6 * dim]``."""
    tokens, time = given("x"), given("t")
    frames = time.shape[2]
    values = block.scale_shift_table[None, None] + time.reshape(len(tokens), frames, 6, -1)
    shift, scale = values.chunk(6, dim=-2)[:2]
    normed = block.norm1(tokens).reshape(len(tokens), frames, -1, tokens.shape[-1])
    return _as_before(normed, scale, shift, tokens).reshape(tokens.shape)


def cosmos3(block: Any, given: Given) -> Tensor:
    """Cosmos 3: the time is added to the tokens, not a modulation."""
    normed: Tensor = block.input_layernorm_moe_gen(given("gen_seq"))
    return normed


def kandinsky5(block: Any, given: Given) -> Tensor:
    """Kandinsky 5: the block's own modulation, in float32."""
    tokens = given("visual_embed")
    values = block.visual_modulation(given("time_embed")).unsqueeze(1).chunk(3, dim=-1)[0]
    shift, scale, _ = values.chunk(3, dim=-1)
    normed = block.self_attention_norm(tokens.float())
    return _as_before(normed, scale.float(), shift.float(), tokens)


def kandinsky6(block: Any, given: Given) -> Tensor:
    """Kandinsky 6: as Kandinsky 5, of the picture."""
    tokens, video = given("vis"), block.video_dec_block
    values = video.visual_modulation(given("time_embed")[0]).unsqueeze(1).chunk(3, dim=-1)[0]
    shift, scale, _ = values.chunk(3, dim=-1)
    normed = video.self_attention_norm(tokens.float())
    return _as_before(normed, scale.float(), shift.float(), tokens)


def kandinsky6_sr(block: Any, given: Given) -> Tensor:
    """Kandinsky 6 SR: as Kandinsky 5, without a text to look at."""
    tokens = given(H)
    values = block.visual_modulation(given(T)).unsqueeze(1).chunk(2, dim=-1)[0]
    shift, scale, _ = values.chunk(3, dim=-1)
    normed = block.self_attention_norm(tokens.float())
    return _as_before(normed, scale.float(), shift.float(), tokens)


def longcat_audio(block: Any, given: Given) -> Tensor:
    """LongCat-AudioDiT: one modulation for all blocks and a table of each, or a modulation of each block's own."""
    tokens, shared = given(H), given("adaln_global_out")
    if block.adaln_type == "local" and shared is None:
        time = given("timestep_embed")
        if block.adaln_use_text_cond:
            text = given("cond")
            time = time + text.sum(1) / given("cond_mask").sum(1, keepdim=True).clamp(min=1).to(text.dtype)
        values = block.adaln_mlp(time)
    else:
        values = shared + block.adaln_scale_shift.unsqueeze(0)
    _, scale, shift = values.chunk(6, dim=-1)[:3]
    normed = torch.nn.functional.layer_norm(tokens.float(), (tokens.shape[-1],), eps=1e-6).type_as(tokens)
    return _as_before(normed, scale[:, None], shift[:, None], tokens)


def stable_audio3(block: Any, given: Given) -> Tensor:
    """Stable Audio 3: as ACE-Step, the scale before the shift."""
    scale, shift = (block.to_scale_shift_gate + given("global_modulation")).chunk(6, dim=-1)[:2]
    return _as_before(block.pre_norm(given(H)), scale.unsqueeze(1), shift.unsqueeze(1), given(H))


def t5_film(block: Any, given: Given) -> Tensor:
    """Spectrogram diffusion: the notes and the time through a layer of their own."""
    attention = block.layer[0]
    normed: Tensor = attention.FiLMLayer(attention.layer_norm(given(H)), given("conditioning_emb"))
    return normed


def _as_before(normed: Any, scale: Tensor, shift: Tensor, tokens: Tensor) -> Tensor:
    modulated: Tensor = normed * (1 + scale) + shift
    return modulated.type_as(tokens)
