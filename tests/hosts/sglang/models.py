"""Tiny transformers of SGLang-Diffusion with random weights, and what to call them with."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Prompt = Callable[[torch.Generator, Any], dict[str, Any]]

TOKENS = 5
"""Of a prompt."""
DITS = "sglang.multimodal_gen.runtime.models.dits"
CONFIGS = "sglang.multimodal_gen.configs.models.dits"


@dataclass(frozen=True)
class Tiny:
    """How to build one, and the arguments of its forward beside latents and timestep."""

    module: str
    name: str
    config: str
    """Module of its configuration classes, and what they begin with."""
    arch: dict[str, Any]
    latents: tuple[int, ...]
    prompt: Prompt
    """Of a source of random numbers and the model."""
    blocks: dict[str, int]
    """The lists that a cache may skip in, with their lengths."""
    inner: str
    """A child that each block calls once, by which its runs are counted."""
    names: tuple[str, str] = ("hidden_states", "timestep")
    """What latents and timestep are called."""


def _text(width: int, tokens: int = TOKENS) -> Prompt:
    def prompt(random: torch.Generator, model: Any) -> dict[str, Any]:
        return {"encoder_hidden_states": torch.randn(1, tokens, width, generator=random)}

    return prompt


def _rope(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(tokens)[:, None] / 10 ** (torch.arange(width)[None] / width)
    return angles.cos(), angles.sin()


def _flux(random: torch.Generator, model: Any) -> dict[str, Any]:
    pooled = torch.randn(1, 8, generator=random)
    return {**_flux2(random, model), "pooled_projections": pooled}


def _flux2(random: torch.Generator, model: Any) -> dict[str, Any]:
    return {**_text(16)(random, model), "freqs_cis": _rope(TOKENS + 16, 8)}


def _qwen_image(random: torch.Generator, model: Any) -> dict[str, Any]:
    from sglang.multimodal_gen.configs.pipeline_configs.qwen_image import QwenImagePipelineConfig

    shapes, cpu = [[(1, 4, 4)]], torch.device("cpu")
    rope, as_complex = QwenImagePipelineConfig.get_freqs_cis(
        shapes, [TOKENS], model.rotary_emb, cpu, torch.float32
    )
    return {
        **_text(16)(random, model),
        "img_shapes": shapes,
        "txt_seq_lens": [TOKENS],
        "freqs_cis": rope,
        "freqs_complex": as_complex,
    }


def _z_image(random: torch.Generator, model: Any) -> dict[str, Any]:
    """Caption and picture are padded to 32 tokens each."""
    caption, picture = torch.zeros(32, 3, dtype=torch.int32), torch.zeros(32, 3, dtype=torch.int32)
    caption[:, 0] = torch.arange(1, 33)
    picture[:16] = torch.cartesian_prod(torch.tensor([33]), torch.arange(4), torch.arange(4))
    return {**_text(16)(random, model), "freqs_cis": (model.rotary_emb(caption), model.rotary_emb(picture))}


def _longcat(random: torch.Generator, model: Any) -> dict[str, Any]:
    picture = torch.cartesian_prod(torch.tensor([1.0]), torch.arange(4.0), torch.arange(4.0))
    return {**_text(16)(random, model), "img_ids": picture, "txt_ids": torch.zeros(TOKENS, 3)}


def _krea2(random: torch.Generator, model: Any) -> dict[str, Any]:
    """What its text encoder gives in two layers, and the places of text and picture."""
    layers = torch.randn(1, TOKENS, 2, 16, generator=random)
    return {"encoder_hidden_states": layers, "pos": torch.zeros(1, TOKENS + 16, 3)}


def _glm_image(random: torch.Generator, model: Any) -> dict[str, Any]:
    return {
        **_text(16)(random, model),
        "prior_token_id": torch.zeros(1, 16, dtype=torch.long),
        "prior_token_drop": torch.zeros(1, 16, dtype=torch.bool),
        "target_size": torch.tensor([[8.0, 8.0]]),
        "crop_coords": torch.zeros(1, 2),
    }


def _ideogram4(random: torch.Generator, model: Any) -> dict[str, Any]:
    """Two tokens of text before those of the picture."""
    tokens = 2 + 16
    kinds = torch.full((1, tokens), 2)
    kinds[:, :2] = 3
    return {
        "position_ids": torch.zeros(1, tokens, 3, dtype=torch.long),
        "segment_ids": torch.ones(1, tokens, dtype=torch.long),
        "indicator": kinds,
        "llm_features": torch.randn(1, tokens, 16, generator=random),
    }


def _sd3(random: torch.Generator, model: Any) -> dict[str, Any]:
    return {**_text(16)(random, model), "pooled_projections": torch.randn(1, 8, generator=random)}


TINY: dict[str, Tiny] = {
    "anima": Tiny(
        "anima",
        "AnimaTransformer3DModel",
        "anima.Anima",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 4,
            "text_embed_dim": 16,
            "adaln_lora_dim": 8,
            "max_size": (8, 8, 8),
        },
        (1, 4, 1, 8, 8),
        _text(16),
        {"transformer_blocks": 4},
        "attn1",
    ),
    "ernie_image": Tiny(
        "ernie_image",
        "ErnieImageTransformer2DModel",
        "ernie_image.ErnieImage",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "ffn_hidden_size": 64,
            "text_in_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        (1, 4, 4, 4),
        _text(16),
        {"layers": 4},
        "self_attention",
    ),
    "glm_image": Tiny(
        "glm_image",
        "GlmImageTransformer2DModel",
        "glmimage.GlmImage",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "condition_dim": 8,
            "prior_vq_quantizer_codebook_size": 8,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
        },
        (1, 4, 8, 8),
        _glm_image,
        {"transformer_blocks": 4},
        "attn1",
    ),
    "ideogram4": Tiny(
        "ideogram",
        "Ideogram4Transformer2DModel",
        "ideogram.Ideogram4DiT",
        {
            "adaln_dim": 16,
            "attention_head_dim": 16,
            "in_channels": 8,
            "intermediate_size": 64,
            "llm_features_dim": 16,
            "mrope_section": (4, 2, 2),
            "num_attention_heads": 2,
            "num_layers": 4,
        },
        (1, 2 + 16, 8),
        _ideogram4,
        {"layers": 4},
        "attention",
        names=("x", "t"),
    ),
    "krea2": Tiny(
        "krea2",
        "Krea2Transformer2DModel",
        "krea2.Krea2",
        {
            "features": 32,
            "tdim": 16,
            "txtdim": 16,
            "heads": 2,
            "kvheads": 2,
            "multiplier": 2,
            "layers": 4,
            "channels": 2,
            "in_channels": 8,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
            "axes_dims": (4, 6, 6),
        },
        (1, 16, 8),
        _krea2,
        {"transformer_blocks": 4},
        "attn",
    ),
    "longcat_image": Tiny(
        "longcat_image",
        "LongCatImageTransformer2DModel",
        "longcat_image.LongCatImage",
        {
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": [4, 6, 6],
        },
        (1, 16, 8),
        _longcat,
        {"transformer_blocks": 3, "single_transformer_blocks": 3},
        "attn",
    ),
    "sana": Tiny(
        "sana",
        "SanaTransformer2DModel",
        "sana.Sana",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 4,
        },
        (1, 4, 4, 4),
        _text(16),
        {"transformer_blocks": 4},
        "attn1",
    ),
    "sana_video": Tiny(
        "sana_video",
        "SanaVideoTransformer3DModel",
        "sana_video.SanaVideo",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 8,
            "rope_max_seq_len": 16,
        },
        (1, 4, 2, 8, 8),
        _text(16),
        {"transformer_blocks": 4},
        "attn1",
    ),
    "sd3": Tiny(
        "stablediffusion3",
        "SD3Transformer2DModel",
        "stablediffusion3.StableDiffusion3Transformer",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "cross_attention_dim": 16,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 8,
        },
        (1, 4, 8, 8),
        _sd3,
        {"transformer_blocks": 4},
        "attn",
    ),
    "flux": Tiny(
        "flux",
        "FluxTransformer2DModel",
        "flux.Flux",
        {
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "guidance_embeds": False,
            "axes_dims_rope": (4, 6, 6),
        },
        (1, 16, 8),
        _flux,
        {"transformer_blocks": 3, "single_transformer_blocks": 3},
        "attn",
    ),
    "flux2": Tiny(
        "flux_2",
        "Flux2Transformer2DModel",
        "flux.Flux",
        {
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "guidance_embeds": False,
            "timestep_guidance_channels": 16,
            "mlp_ratio": 2.0,
            "rope_theta": 2000,
            "eps": 1e-6,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        (1, 16, 8),
        _flux2,
        {"transformer_blocks": 3, "single_transformer_blocks": 3},
        "attn",
    ),
    "qwen_image": Tiny(
        "qwen_image",
        "QwenImageTransformer2DModel",
        "qwenimage.QwenImage",
        {
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        (1, 16, 8),
        _qwen_image,
        {"transformer_blocks": 4},
        "attn",
    ),
    "wan": Tiny(
        "wanvideo",
        "WanTransformer3DModel",
        "wanvideo.WanVideo",
        {
            "num_attention_heads": 1,
            "attention_head_dim": 128,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": 4,
        },
        (1, 4, 2, 4, 4),
        _text(16),
        {"blocks": 4},
        "ffn",
    ),
    "hunyuan_video": Tiny(
        "hunyuanvideo",
        "HunyuanVideoTransformer3DModel",
        "hunyuanvideo.HunyuanVideo",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 3,
            "num_single_layers": 3,
            "num_refiner_layers": 1,
            "rope_axes_dim": (4, 6, 6),
            "text_embed_dim": 32,
            "pooled_projection_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
        },
        (1, 4, 2, 4, 4),
        _text(32, tokens=6),
        {"double_blocks": 3, "single_blocks": 3},
        "attn",
    ),
    "z_image": Tiny(
        "zimage",
        "ZImageTransformer2DModel",
        "zimage.ZImage",
        {
            "in_channels": 4,
            "dim": 32,
            "num_layers": 4,
            "n_refiner_layers": 1,
            "num_attention_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": (4, 6, 6),
            "axes_lens": (64, 64, 64),
        },
        (1, 4, 1, 8, 8),
        _z_image,
        {"layers": 4},
        "attention",
    ),
}


def build(kind: str, seed: int = 0) -> nn.Module:
    """A model in float32 on the CPU, within ``plain_kernels()``; the same weights each time."""
    tiny = TINY[kind]
    module, prefix = tiny.config.split(".")
    configs = importlib.import_module(f"{CONFIGS}.{module}")
    arch_class = getattr(configs, f"{prefix}ArchConfig")
    declared = {each.name for each in dataclasses.fields(arch_class)}
    arch = arch_class(**{name: value for name, value in tiny.arch.items() if name in declared})
    for name in tiny.arch.keys() - declared:  # FLUX.2 reads more than its class declares
        setattr(arch, name, tiny.arch[name])
    config = next(
        getattr(configs, prefix + end)
        for end in ("Config", "DitConfig", "DiTConfig")
        if hasattr(configs, prefix + end)
    )
    cls = getattr(importlib.import_module(f"{DITS}.{tiny.module}"), tiny.name)
    model: nn.Module = cls(config(arch_config=arch), hf_config={})
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and "norm" in name and name.endswith("weight") else 0.0
            spread = 0.3 if "x_embedder" in name else 0.08  # what comes in outweighs what the blocks add
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=random))
    return model.float().eval()
