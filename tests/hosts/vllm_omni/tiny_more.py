"""More tiny instances: classes that are called in ways of their own. See `tiny.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .host import od_config
from .tiny import ATTENTION, HEAD, HEADS, TEXT, WIDTH, WORDS, Moment, Tiny, noise
from .tiny import TINY as FIRST
from .tiny_single import TINY as SECOND


def _omnigen2(at: Moment) -> dict[str, Any]:
    from vllm_omni.diffusion.models.omnigen2.omnigen2_transformer import OmniGen2RotaryPosEmbed

    return {
        "hidden_states": at.latents(1, 4, 8, 8),
        "timestep": at.at(1.0),
        "text_hidden_states": at.text(1, WORDS, TEXT),
        "freqs_cis": OmniGen2RotaryPosEmbed.get_freqs_cis((4, 6, 6), (64, 32, 32), theta=10000),
        "text_attention_mask": torch.ones(1, WORDS, dtype=torch.long),
    }


def _hidream(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(1, 4, 8, 8).to(torch.bfloat16),
        "timesteps": at.at(1000.0),
        "encoder_hidden_states_t5": at.text(1, WORDS, TEXT).to(torch.bfloat16),
        "encoder_hidden_states_llama3": at.text(6, 1, WORDS, TEXT, part=1).to(torch.bfloat16),
        "pooled_embeds": at.text(1, 20, part=2),
    }


def _language_model(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=HEAD,
        rms_norm_eps=1e-6,
        attention_bias=False,
        hidden_act="silu",
        rope_parameters={"rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        **more,
    )


def _hidream_o1(at: Moment) -> dict[str, Any]:
    pixels = 8
    tokens = WORDS + pixels
    return {
        "input_ids": torch.arange(WORDS)[None],
        "position_ids": torch.arange(tokens)[None].expand(3, 1, tokens),
        "vinputs": at.latents(1, pixels, 3 * 32 * 32),
        "timestep": at.at(1.0),
        "attention_mask": torch.zeros(1, 1, tokens, tokens),
        "full_attn_spans": [[(WORDS, tokens)]],
    }


def _cosmos3(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(1, 4, 2, 4, 4),
        "timestep": at.at(1000.0),
        "text_ids": torch.arange(WORDS)[None],
        "text_mask": torch.ones(1, WORDS),
        "video_shape": (2, 4, 4),
        "fps": 24.0,
    }


def _ltx2(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(1, 8, 4),
        "audio_hidden_states": noise(1, 3, 4, seed=3),
        "encoder_hidden_states": at.text(1, WORDS, TEXT),
        "audio_encoder_hidden_states": at.text(1, WORDS, TEXT, part=1),
        "timestep": at.at(1000.0)[:, None],
        "num_frames": 2,
        "height": 2,
        "width": 2,
        "audio_num_frames": 3,
        "audio_timestep": at.at(1000.0)[:, None],
    }


def _lingbot_video(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(1, 4, 2, 4, 4),
        "timestep": at.at(1000.0),
        "encoder_hidden_states": at.text(1, WORDS, TEXT),
    }


def _minimax_h3(at: Moment) -> dict[str, Any]:
    video, audio, text = 8, 3, WORDS
    total = text + video + audio
    packed = lambda count: {"cu_seqlens_q": torch.tensor([0, count]), "max_seqlen_q": count}  # noqa: E731
    place = torch.arange(total)
    x = torch.zeros(1, total, 4 * 4)
    x[:, text : text + video] = at.latents(1, video, 16)
    sound = torch.zeros(1, total, 4)
    sound[:, text + video :] = noise(1, audio, 4, seed=3)
    return {
        "x": x,
        "audio_x": sound,
        "img_position_ids": torch.stack([place, place // 2, place % 2])[:, :, None].permute(2, 1, 0).float(),
        "unique_timesteps": at.at(1000.0),
        "inverse_indices": torch.zeros(total),
        "update_mask": torch.ones(video),
        "token_tags": torch.tensor([1] * text + [0] * video + [2] * audio),
        "prompt_embeds": at.text(text, TEXT),
        "img_pos_info": {"position_ids": place[text : text + video]},
        "audio_pos_info": {"position_ids": place[text + video :]},
        "text_pos_info": {"position_ids": place[:text]},
        "img_pos_for_infer_output_info": {"position_ids": place[text : text + video]},
        "packed_seq_params": packed(total),
        "refiner_packed_seq_params": packed(text),
    }


TINY: dict[str, Tiny] = {
    **FIRST,
    **SECOND,
    "omnigen2": Tiny(
        "omnigen2.omnigen2_transformer.OmniGen2Transformer2DModel",
        lambda cls: cls(
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=4,
            num_refiner_layers=1,
            num_attention_heads=HEADS,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(64, 32, 32),
            text_feat_dim=TEXT,
        ),
        _omnigen2,
        {"layers": 4},
    ),
    "hidream": Tiny(
        "hidream_image.hidream_image_transformer.HiDreamImageTransformer2DModel",
        lambda cls: cls(
            od_config(),
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=3,
            **ATTENTION,
            caption_channels=[TEXT, TEXT],
            text_emb_dim=20,
            num_routed_experts=0,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(8, 8),
            llama_layers=[0, 1, 2, 3, 4, 5],
        ).to(torch.bfloat16),  # into which it turns its latents in any case
        _hidream,
        {"double_stream_blocks": 3, "single_stream_blocks": 3},
    ),
    "hidream_o1": Tiny(
        "hidream_o1_image.hidream_o1_image_transformer.HiDreamO1ImageTransformer",
        lambda cls: cls(SimpleNamespace(text_config=_language_model())),
        _hidream_o1,
        {"model.language_model.layers": 4},
    ),
    "cosmos3": Tiny(
        "cosmos3.transformer_cosmos3.Cosmos3VFMTransformer",
        lambda cls: cls(
            od_config(
                {
                    "hidden_size": WIDTH,
                    "num_hidden_layers": 4,
                    "num_attention_heads": HEADS,
                    "num_key_value_heads": 1,
                    "head_dim": HEAD,
                    "intermediate_size": 48,
                    "vocab_size": 32,
                    "latent_channel": 4,
                    "rope_scaling": {"mrope_section": [4, 2, 2]},
                }
            )
        ),
        _cosmos3,
        {"gen_layers": 4},
    ),
    "ltx2": Tiny(
        "ltx2.ltx2_transformer.LTX2VideoTransformer3DModel",
        lambda cls: cls(
            in_channels=4,
            out_channels=4,
            **ATTENTION,
            cross_attention_dim=WIDTH,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=HEADS,
            audio_attention_head_dim=8,
            audio_cross_attention_dim=16,
            num_layers=4,
            caption_channels=TEXT,
        ),
        _ltx2,
        {"transformer_blocks": 4},
    ),
    "lingbot_video": Tiny(
        "lingbot_video.lingbot_video_transformer.LingBotVideoTransformer3DModel",
        lambda cls: cls(
            in_channels=4,
            out_channels=4,
            hidden_size=WIDTH,
            num_attention_heads=HEADS,
            depth=4,
            intermediate_size=48,
            text_dim=TEXT,
            freq_dim=16,
            axes_dims=(4, 6, 6),
            axes_lens=(64, 32, 32),
        ),
        _lingbot_video,
        {"blocks": 4},
    ),
    "minimax_h3": Tiny(
        "minimax_h3.minimax_h3_transformer.MiniMaxH3DiTModel",
        lambda cls: cls(
            od_config(
                {
                    "num_layers": 4,
                    "token_refiner_num_layers": 1,
                    "hidden_size": WIDTH,
                    "num_attention_heads": HEADS,
                    "attention_head_dim": HEAD,
                    "ffn_hidden_size": 48,
                    "latents_dim": 4,
                    "audio_latents_dim": 4,
                    "text_dim": TEXT,
                    "timestep_input_dim": 16,
                    "time_embed_hidden_size": WIDTH,
                    "time_embed_dim": 16,
                    "adaln_out_features": 18 * WIDTH,
                    "final_adaln_out_features": 2 * WIDTH,
                    "rope_inv_freq_len": 2,
                }
            )
        ),
        _minimax_h3,
        {"blocks": 4},
    ),
}
