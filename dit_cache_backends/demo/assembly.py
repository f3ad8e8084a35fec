"""How the demo's parts become a diffusers `FluxPipeline`, and how it is written to a folder."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch

from dit_cache_backends.demo import text
from dit_cache_backends.demo.scenes import SIDE

SEED = 7
# What every call of the demo pipeline needs: its size and the length of its sentences.
CALL: dict[str, Any] = {
    "height": SIDE,
    "width": SIDE,
    "max_sequence_length": text.TOKENS,
    "num_inference_steps": 28,
}


def build_transformer() -> Any:
    """An untrained `FluxTransformer2DModel` of 4 double and 8 single blocks, 4.5 M parameters.

    Modulations and the last projection start at zero (DiT's adaLN-Zero): every block starts as the identity.
    """
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=text.TEXT_WIDTH,
        pooled_projection_dim=text.POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    modulated = ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(modulated) or name == "proj_out":
                module.weight.zero_()
                module.bias.zero_()
    return model


def assemble(vae: Any, transformer: Any) -> Any:
    """A `FluxPipeline` of the given parts, the frozen encoders and a scheduler that fits the training."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    start, plain = text.tokenizer(start=True), text.tokenizer(start=False)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=text.clip_encoder(start, SEED),
        tokenizer=start,
        text_encoder_2=text.t5_encoder(plain, SEED),
        tokenizer_2=plain,
        transformer=transformer,
    )
    for part in (pipeline.text_encoder, pipeline.text_encoder_2, vae):
        part.half().float()  # trained with exactly the weights that are shipped
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def embed(pipeline: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """T5's tokens (n, `TOKENS`, 128) and CLIP's pooled vectors (n, 64), as the pipeline makes them."""
    tokens, pooled = [], []
    for begin in range(0, len(prompts), 500):
        found = pipeline.encode_prompt(
            prompts[begin : begin + 500], None, device="cpu", max_sequence_length=text.TOKENS
        )
        tokens.append(found[0])
        pooled.append(found[1])
    return torch.cat(tokens), torch.cat(pooled)


def export(pipeline: Any, folder: Path) -> None:
    """Writes the pipeline in float16 safetensors; a README.md in `folder` stays."""
    for old in folder.glob("*/"):
        shutil.rmtree(old)
    parts = dict(pipeline.components)
    halves = {n: copy.deepcopy(p).half() if isinstance(p, torch.nn.Module) else p for n, p in parts.items()}
    type(pipeline)(**halves).save_pretrained(folder, safe_serialization=True)


@torch.no_grad()
def paint(pipeline: Any, prompts: list[str], seed: int = 0, **call: Any) -> list[Any]:
    """One PIL picture per prompt, each from a noise of its own (`seed` + place), with the demo's own settings."""
    noise = [torch.Generator().manual_seed(seed + place) for place in range(len(prompts))]
    return list(pipeline(prompts, generator=noise, guidance_scale=1.0, **{**CALL, **call}).images)
