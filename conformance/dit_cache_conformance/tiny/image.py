"""Tiny image transformers, of the classes that `configs.py` and `further.py` do not have; Latte is among them.

A row for each: the class, its configuration (`image_configs.py`), the arguments of a call (`image_calls.py`), and its
stacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import image_calls as calls
from . import image_configs as configs
from .spec import TinyTransformer
from .weights import seeded


def made(cls: str, config: dict[str, Any]) -> Callable[[], nn.Module]:
    """How to build a class of diffusers, by name: who needs one model loads one model."""

    def build() -> nn.Module:
        import diffusers

        return seeded(lambda: getattr(diffusers, cls)(**config))

    return build


def nucleus_moe() -> nn.Module:
    from diffusers import NucleusMoEImageTransformer2DModel

    def make() -> Any:
        model = NucleusMoEImageTransformer2DModel(**configs.NUCLEUS_MOE)
        for name, parameter in model.named_parameters():
            if ".experts." in name:  # left as they were in memory
                nn.init.normal_(parameter, std=0.1)
        return model

    return seeded(make)


BOTH = {"transformer_blocks": 3, "single_transformer_blocks": 5}
SIX = {"transformer_blocks": 6}
_FLUX3_STACKS = {"mode_blocks.image": 3, "mode_blocks.image_cond": 3, "single_transformer_blocks": 5}

IMAGE_SPECS: tuple[TinyTransformer, ...] = (
    TinyTransformer(
        "auraflow",
        made("AuraFlowTransformer2DModel", configs.AURAFLOW),
        calls.auraflow,
        {"joint_transformer_blocks": 3, "single_transformer_blocks": 5},
    ),
    TinyTransformer(
        "bria",
        made("BriaTransformer2DModel", configs.BRIA),
        calls.bria,
        {"transformer_blocks": 8},
    ),
    TinyTransformer(
        "bria_controlled",
        made("BriaTransformer2DModel", configs.BRIA),
        calls.bria_controlled,
        {"transformer_blocks": 8},
    ),
    TinyTransformer(
        "bria_fibo",
        made("BriaFiboTransformer2DModel", configs.BRIA_FIBO),
        calls.bria_fibo,
        BOTH,
    ),
    TinyTransformer(
        "bria_fibo2",
        made("BriaFibo2Transformer2DModel", configs.FIBO2),
        calls.bria_fibo2,
        {"layers": 6},
    ),
    TinyTransformer(
        "bria_fibo2_edit",
        made("BriaFibo2Transformer2DModel", configs.FIBO2),
        calls.bria_fibo2_edit,
        {"layers": 6},
    ),
    TinyTransformer(
        "cogview3plus",
        made("CogView3PlusTransformer2DModel", configs.COGVIEW3PLUS),
        calls.cogview,
        SIX,
    ),
    TinyTransformer(
        "cogview4",
        made("CogView4Transformer2DModel", configs.COGVIEW4),
        calls.cogview,
        SIX,
    ),
    TinyTransformer(
        "dreamlite",
        made("DreamLiteTransformer2DModel", configs.DREAMLITE),
        calls.latents,
        SIX,
    ),
    TinyTransformer(
        "ernie_image",
        made("ErnieImageTransformer2DModel", configs.ERNIE_IMAGE),
        calls.ernie_image,
        {"layers": 6},
    ),
    TinyTransformer(
        "flux3",
        made("Flux3Transformer2DModel", configs.FLUX3),
        calls.flux3,
        _FLUX3_STACKS,
    ),
    TinyTransformer(
        "flux3_edit",
        made("Flux3Transformer2DModel", configs.FLUX3),
        calls.flux3_edit,
        _FLUX3_STACKS,
    ),
    TinyTransformer(
        "hunyuan_dit",
        made("HunyuanDiT2DModel", configs.HUNYUAN_DIT),
        calls.hunyuan_dit,
        {"blocks": 8},
    ),
    TinyTransformer(
        "hunyuan_dit_controlled",
        made("HunyuanDiT2DModel", configs.HUNYUAN_DIT),
        calls.hunyuan_dit_controlled,
        {"blocks": 8},
    ),
    TinyTransformer(
        "hunyuan_image",
        made("HunyuanImageTransformer2DModel", configs.HUNYUAN_IMAGE),
        calls.hunyuan_image,
        {"transformer_blocks": 8},
    ),
    TinyTransformer(
        "ideogram4",
        made("Ideogram4Transformer2DModel", configs.IDEOGRAM4),
        calls.ideogram4,
        {"layers": 6},
    ),
    TinyTransformer(
        "joyimage_edit",
        made("JoyImageEditTransformer3DModel", configs.JOY),
        calls.joyimage_edit,
        {"double_blocks": 6},
    ),
    TinyTransformer(
        "joyimage_edit_plus",
        made("JoyImageEditPlusTransformer3DModel", configs.JOY),
        calls.joyimage_edit_plus,
        {"double_blocks": 6},
    ),
    TinyTransformer(
        "krea2",
        made("Krea2Transformer2DModel", configs.KREA2),
        calls.krea2,
        SIX,
    ),
    TinyTransformer(
        "latte",
        made("LatteTransformer3DModel", configs.LATTE),
        calls.latte,
        {"transformer_blocks": 8},
    ),
    TinyTransformer(
        "latte_square",
        made("LatteTransformer3DModel", configs.LATTE_SQUARE),
        calls.latte_square,
        {"transformer_blocks": 8},
    ),
    TinyTransformer(
        "nucleus_moe",
        nucleus_moe,
        calls.nucleus_moe,
        SIX,
    ),
    TinyTransformer(
        "omnigen",
        made("OmniGenTransformer2DModel", configs.OMNIGEN),
        calls.omnigen,
        {"layers": 6},
    ),
    TinyTransformer(
        "ovis_image",
        made("OvisImageTransformer2DModel", configs.OVIS_IMAGE),
        calls.packed,
        {"transformer_blocks": 8},
    ),
    TinyTransformer(
        "prior",
        made("PriorTransformer", configs.PRIOR),
        calls.prior,
        SIX,
    ),
    TinyTransformer(
        "prx",
        made("PRXTransformer2DModel", configs.PRX),
        calls.prx,
        {"blocks": 6},
    ),
    TinyTransformer(
        "sana",
        made("SanaTransformer2DModel", configs.SANA),
        calls.latents,
        SIX,
    ),
    TinyTransformer(
        "sana_controlled",
        made("SanaTransformer2DModel", configs.SANA),
        calls.sana_controlled,
        SIX,
    ),
    TinyTransformer(
        "transformer_2d",
        made("Transformer2DModel", configs.TRANSFORMER_2D),
        calls.latents,
        SIX,
    ),
    TinyTransformer(
        "uvit2d",
        made("UVit2DModel", configs.UVIT2D),
        calls.uvit2d,
        {"transformer_layers": 6},
        returns_tuple=False,
    ),
)
