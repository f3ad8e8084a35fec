"""Tiny instances of vLLM-Omni's own transformers, and what each is called with at a moment of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .host import filled, od_config

HEADS, HEAD, WIDTH, TEXT = 2, 16, 32, 24
"""Attention heads, the size of each, both together, and the width of text embeddings."""
WORDS = 5
DRIFT = 0.05


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Moment:
    """One call of a run: how far the latents have moved, and how much of the time is left (1 down to 0)."""

    moved: float = 0.0
    time: float = 0.5

    def latents(self, *shape: int) -> Tensor:
        return noise(*shape, seed=1) + DRIFT * self.moved * noise(*shape, seed=2)

    def text(self, *shape: int, part: int = 0) -> Tensor:
        return noise(*shape, seed=100 + part)

    def at(self, scale: float) -> Tensor:
        return torch.tensor([scale * self.time])


@dataclass(frozen=True)
class Tiny:
    """A transformer class of vLLM-Omni."""

    path: str
    """Its module below vllm_omni.diffusion.models, and its name."""
    make: Callable[[Any], nn.Module]
    """Given the class."""
    inputs: Callable[[Moment], dict[str, Any]]
    stacks: dict[str, int]
    """Stacks with the number of their blocks."""
    spread: float = 0.08
    """Of the weights: the larger, the more a block adds, and the less a skipped one can follow."""

    more_lists: tuple[str, ...] = ()
    """Lists of blocks that are not the first of a stack."""

    @property
    def lists(self) -> tuple[str, ...]:
        """Every list of blocks, by its path."""
        return (*self.stacks, *self.more_lists)

    @property
    def cls(self) -> type[nn.Module]:
        module, _, name = self.path.rpartition(".")
        found: type[nn.Module] = getattr(import_module(f"vllm_omni.diffusion.models.{module}"), name)
        return found

    def build(self) -> nn.Module:
        return filled(self.make(self.cls), spread=self.spread)


def output(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """What a transformer gives, as one tensor, whatever it is wrapped in."""
    found = model(**arguments)
    return torch.cat([each.flatten().float() for each in tensors(found)])


def tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, dict):  # also the outputs of diffusers and transformers
        return [each for value in found.values() for each in tensors(value)]
    if isinstance(found, (list, tuple)):
        return [each for value in found for each in tensors(value)]
    return [] if found is None else tensors(list(vars(found).values()))


def ids(*sizes: int) -> Tensor:
    """Coordinates of a grid, [tokens, axes]."""
    grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    return torch.stack([each.flatten() for each in grid], dim=-1).float()


SIDE = 4
ATTENTION = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
_ROPE = {"axes_dims_rope": (4, 6, 6)}


def _packed(at: Moment, axes: int, **more: Any) -> dict[str, Any]:
    """Latents as tokens with their coordinates, as FLUX takes them."""
    zeros = torch.zeros(SIDE * SIDE, axes - 2)
    return {
        "hidden_states": at.latents(1, SIDE * SIDE, 16),
        "encoder_hidden_states": at.text(1, WORDS, TEXT),
        "timestep": at.at(1.0),
        "img_ids": torch.cat([zeros, ids(SIDE, SIDE)], dim=-1),
        "txt_ids": torch.zeros(WORDS, axes),
        **more,
    }


def _flux(at: Moment) -> dict[str, Any]:
    return _packed(at, 3, pooled_projections=at.text(1, 20, part=1), guidance=torch.tensor([3.5]))


_FLUX = {"in_channels": 16, **ATTENTION, "joint_attention_dim": TEXT, **_ROPE, "pooled_projection_dim": 20}
_FLUX2 = {
    "in_channels": 16,
    **ATTENTION,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 4, 4, 4),
    "timestep_guidance_channels": 16,
    "num_layers": 3,
    "num_single_layers": 3,
}


def _qwen(at: Moment) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(1, SIDE * SIDE, 16),
        "encoder_hidden_states": at.text(1, WORDS, TEXT),
        "encoder_hidden_states_mask": None,
        "timestep": at.at(1.0),
        "img_shapes": [[(1, SIDE, SIDE)]],
        "txt_seq_lens": [WORDS],
    }


def video(at: Moment, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": at.latents(1, 4, 2, 8, 8),
        "timestep": at.at(1000.0),
        "encoder_hidden_states": at.text(1, WORDS, TEXT),
        **more,
    }


WAN = {
    "in_channels": 4,
    "out_channels": 4,
    **ATTENTION,
    "text_dim": TEXT,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 4,
}


def _double_single(
    name: str, make: Callable[[Any], nn.Module], inputs: Any, one_stack: bool, spread: float = 0.08
) -> Tiny:
    stacks = (
        {"transformer_blocks": 6} if one_stack else {"transformer_blocks": 3, "single_transformer_blocks": 3}
    )
    return Tiny(name, make, inputs, stacks, spread, ("single_transformer_blocks",) if one_stack else ())


TINY: dict[str, Tiny] = {
    "qwen_image": Tiny(
        "qwen_image.qwen_image_transformer.QwenImageTransformer2DModel",
        lambda cls: cls(
            od_config(),
            in_channels=16,
            out_channels=4,
            num_layers=4,
            **ATTENTION,
            joint_attention_dim=TEXT,
            **_ROPE,
        ),
        _qwen,
        {"transformer_blocks": 4},
    ),
    "flux": _double_single(
        "flux.flux_transformer.FluxTransformer2DModel",
        lambda cls: cls(num_layers=3, num_single_layers=3, **_FLUX),
        _flux,
        True,
    ),
    "flux_kontext": _double_single(
        "flux.flux_transformer.FluxKontextTransformer2DModel",
        lambda cls: cls(od_config({"num_layers": 3}), num_single_layers=3, **_FLUX),
        _flux,
        True,
    ),
    "flux2": _double_single(
        "flux2.flux2_transformer.Flux2Transformer2DModel",
        lambda cls: cls(**_FLUX2, od_config=od_config()),
        lambda at: _packed(at, 4, guidance=torch.tensor([4.0])),
        False,
    ),
    "flux2_klein": _double_single(
        "flux2_klein.flux2_klein_transformer.Flux2Transformer2DModel",
        lambda cls: cls(**_FLUX2, guidance_embeds=False, od_config=od_config()),
        lambda at: _packed(at, 4),
        False,
    ),
    "wan": Tiny(
        "wan2_2.wan2_2_transformer.WanTransformer3DModel", lambda cls: cls(**WAN), video, {"blocks": 4}
    ),
    "wan_vace": Tiny(
        "wan2_2.wan2_2_vace_transformer.WanVACETransformer3DModel",
        lambda cls: cls(**WAN, vace_layers=[0, 1, 3], vace_in_channels=8),
        lambda at: video(at, vace_context=at.text(1, 8, 2, 8, 8, part=2)),
        {"vace_blocks": 3, "blocks": 4},
    ),
    "z_image": Tiny(
        "z_image.z_image_transformer.ZImageTransformer2DModel",
        lambda cls: cls(
            in_channels=4,
            dim=WIDTH,
            n_layers=4,
            n_refiner_layers=1,
            n_heads=HEADS,
            n_kv_heads=HEADS,
            cap_feat_dim=TEXT,
            axes_dims=[4, 6, 6],
            axes_lens=[64, 32, 32],
        ),
        lambda at: {"x": [at.latents(4, 1, 8, 8)], "t": at.at(1.0), "cap_feats": [at.text(WORDS, TEXT)]},
        {"layers": 4},
    ),
    "sd3": Tiny(
        "sd3.sd3_transformer.SD3Transformer2DModel",
        lambda cls: cls(
            od_config(
                {
                    "num_layers": 4,
                    "sample_size": 8,
                    "in_channels": 4,
                    "out_channels": 4,
                    **ATTENTION,
                    "caption_projection_dim": WIDTH,
                    "pooled_projection_dim": 20,
                    "joint_attention_dim": TEXT,
                    "patch_size": 2,
                    "dual_attention_layers": (0,),
                    "qk_norm": "rms_norm",
                    "pos_embed_max_size": 8,
                }
            )
        ),
        lambda at: {
            "hidden_states": at.latents(1, 4, 8, 8),
            "encoder_hidden_states": at.text(1, WORDS, TEXT),
            "pooled_projections": at.text(1, 20, part=1),
            "timestep": at.at(1000.0),
        },
        {"transformer_blocks": 3},
    ),
    "longcat_image": _double_single(
        "longcat_image.longcat_image_transformer.LongCatImageTransformer2DModel",
        lambda cls: cls(
            od_config(
                {
                    **_FLUX,
                    "patch_size": 1,
                    "num_layers": 3,
                    "num_single_layers": 3,
                    "axes_dims_rope": [4, 6, 6],
                }
            )
        ),
        lambda at: _packed(at, 3),
        True,
    ),
    "ovis_image": _double_single(
        "ovis_image.ovis_image_transformer.OvisImageTransformer2DModel",
        lambda cls: cls(
            od_config({"num_layers": 3}),
            in_channels=16,
            out_channels=16,
            num_layers=3,
            num_single_layers=3,
            **ATTENTION,
            joint_attention_dim=TEXT,
            **_ROPE,
        ),
        lambda at: _packed(at, 3),
        True,
        spread=0.05,
    ),
}
