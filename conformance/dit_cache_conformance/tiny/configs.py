"""Tiny configurations: one function per transformer class, for the pipelines and for bare transformers.

Two heads of 12 or 16 channels, 6 to 12 blocks, 8 text tokens, 16 to 48 latent tokens. Imports of diffusers
stay inside the functions: a test file that needs one model loads one model.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .copies import built_once
from .weights import scale_output, seeded

TEXT_DIM = 32
TEXT_TOKENS = 8
POOLED_DIM = 32
HEADS: dict[str, int] = {"num_attention_heads": 2, "attention_head_dim": 16}
ROPE = (4, 6, 6)


@built_once
def flux(num_layers: int = 4, num_single_layers: int = 8, seed: int = 0) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    def make() -> Any:
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            axes_dims_rope=ROPE,
            **HEADS,
        )

    return scale_output(seeded(make, seed), "proj_out", 2.0)


@built_once
def flux_controlnet(seed: int = 1) -> nn.Module:
    from diffusers import FluxControlNetModel

    def make() -> Any:
        return FluxControlNetModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            axes_dims_rope=list(ROPE),
            **HEADS,
        )

    controlnet = seeded(make, seed)
    for outputs in ("controlnet_blocks", "controlnet_single_blocks"):
        scale_output(controlnet, outputs, 10.0)
    return controlnet


@built_once
def flux2(seed: int = 0) -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    def make() -> Any:
        return Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=3,
            num_single_layers=5,
            joint_attention_dim=TEXT_DIM,
            timestep_guidance_channels=32,
            mlp_ratio=2.0,
            axes_dims_rope=(4, 4, 4, 4),
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def chroma(seed: int = 0) -> nn.Module:
    from diffusers import ChromaTransformer2DModel

    def make() -> Any:
        return ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=3,
            num_single_layers=5,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=ROPE,
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def qwen_image(seed: int = 0) -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    def make() -> Any:
        return QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=6,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=ROPE,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def qwen_image21(seed: int = 0) -> nn.Module:
    from diffusers import QwenImage21Transformer2DModel

    def make() -> Any:
        return QwenImage21Transformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=6,
            context_in_dim=TEXT_DIM,
            mlp_ratio=2,
            axes_dims_rope=ROPE,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def sd3(num_layers: int = 7, seed: int = 0) -> nn.Module:
    from diffusers import SD3Transformer2DModel

    def make() -> Any:
        return SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=num_layers,
            joint_attention_dim=TEXT_DIM,
            caption_projection_dim=32,
            pooled_projection_dim=POOLED_DIM,
            pos_embed_max_size=8,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def wan(seed: int = 0) -> nn.Module:
    from diffusers import WanTransformer3DModel

    def make() -> Any:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT_DIM,
            freq_dim=32,
            ffn_dim=48,
            num_layers=6,
            rope_max_seq_len=32,
        )

    return seeded(make, seed)


@built_once
def cogvideox(seed: int = 0) -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    def make() -> Any:
        return CogVideoXTransformer3DModel(
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=TEXT_DIM,
            num_layers=6,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=TEXT_TOKENS,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def hunyuan_video(seed: int = 0) -> nn.Module:
    from diffusers import HunyuanVideoTransformer3DModel

    def make() -> Any:
        return HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_single_layers=5,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            rope_axes_dim=ROPE,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def dit(num_layers: int = 8, seed: int = 0) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    def make() -> Any:
        return DiTTransformer2DModel(
            in_channels=4, out_channels=8, num_layers=num_layers, sample_size=8, patch_size=2, **HEADS
        )

    return seeded(make, seed)


@built_once
def pixart(seed: int = 0) -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    def make() -> Any:
        return PixArtTransformer2DModel(
            in_channels=4,
            out_channels=8,
            num_layers=7,
            cross_attention_dim=32,
            sample_size=8,
            patch_size=2,
            caption_channels=TEXT_DIM,
            **HEADS,
        )

    return seeded(make, seed)


@built_once
def z_image(seed: int = 0) -> nn.Module:
    from diffusers import ZImageTransformer2DModel

    def make() -> Any:
        return ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=6,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=TEXT_DIM,
            axes_dims=[4, 6, 6],
            axes_lens=[64, 32, 32],
        )

    return seeded(make, seed)


@built_once
def glm_image(seed: int = 0) -> nn.Module:
    from diffusers import GlmImageTransformer2DModel

    def make() -> Any:
        return GlmImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            text_embed_dim=TEXT_DIM,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=16,
            **HEADS,
        )

    return seeded(make, seed)
