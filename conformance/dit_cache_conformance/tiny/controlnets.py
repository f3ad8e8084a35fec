"""Tiny control nets, and what they give to the tiny transformers at a moment of a run.

They see the latents of the moment, so what they give moves along with the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .configs import HEADS, POOLED_DIM, ROPE, TEXT_DIM, flux_controlnet
from .weights import noise, scale_output, seeded

GAIN = 3.0
"""What a net adds is to be as large as what it is added to."""

Residuals = Callable[[dict[str, Any]], dict[str, Any]]


def _flux_kind(depths: tuple[int, int]) -> Callable[[nn.Module], Residuals]:
    """FLUX's net for FLUX and Chroma; it asks for what Chroma has not."""

    def make(_: nn.Module) -> Residuals:
        net = flux_controlnet()

        def residuals(arguments: dict[str, Any]) -> dict[str, Any]:
            names = ("hidden_states", "encoder_hidden_states", "timestep", "img_ids", "txt_ids")
            double, single = net(
                **{name: arguments[name] for name in names},
                pooled_projections=noise(1, POOLED_DIM, seed=41),
                controlnet_cond=noise(*arguments["hidden_states"].shape, seed=40),
                return_dict=False,
            )
            return {
                "controlnet_block_samples": list(double[: depths[0]]),
                "controlnet_single_block_samples": list(single[: depths[1]]),
            }

        return residuals

    return make


def _qwen_image(_: nn.Module) -> Residuals:
    from diffusers import QwenImageControlNetModel

    def make() -> Any:
        return QwenImageControlNetModel(
            in_channels=16,
            out_channels=4,
            num_layers=3,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=ROPE,
            **HEADS,
        )

    net = scale_output(seeded(make, 1), "controlnet_blocks", GAIN)

    def residuals(arguments: dict[str, Any]) -> dict[str, Any]:
        condition = noise(*arguments["hidden_states"].shape, seed=40)
        return {"controlnet_block_samples": net(**arguments, controlnet_cond=condition)}

    return residuals


def _sd3(_: nn.Module) -> Residuals:
    from diffusers import SD3ControlNetModel

    def make() -> Any:
        return SD3ControlNetModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            joint_attention_dim=TEXT_DIM,
            caption_projection_dim=32,
            pooled_projection_dim=POOLED_DIM,
            pos_embed_max_size=8,
            **HEADS,
        )

    net = scale_output(seeded(make, 1), "controlnet_blocks", GAIN)

    def residuals(arguments: dict[str, Any]) -> dict[str, Any]:
        condition = noise(*arguments["hidden_states"].shape, seed=40)
        return {"block_controlnet_hidden_states": net(**arguments, controlnet_cond=condition)[0]}

    return residuals


def _sana(model: nn.Module) -> Residuals:
    from diffusers import SanaControlNetModel

    config = model.config
    names = (
        *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "sample_size"),
        *("num_cross_attention_heads", "cross_attention_head_dim", "cross_attention_dim", "caption_channels"),
        *("mlp_ratio", "patch_size"),
    )

    def make() -> Any:
        return SanaControlNetModel(num_layers=3, **{name: getattr(config, name) for name in names})

    net = scale_output(seeded(make, 1), "controlnet_blocks", GAIN)

    def residuals(arguments: dict[str, Any]) -> dict[str, Any]:
        condition = noise(*arguments["hidden_states"].shape, seed=40)
        return {"controlnet_block_samples": tuple(net(**arguments, controlnet_cond=condition)[0])}

    return residuals


def _z_image(model: nn.Module) -> Residuals:
    """It has no embedders and refiners of its own: those of the transformer are its own as well."""
    from diffusers import ZImageControlNetModel

    def make() -> Any:
        return ZImageControlNetModel(
            control_layers_places=[0, 2, 5],
            control_refiner_layers_places=[0],
            control_in_dim=4,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )

    net = seeded(make, 1)
    for layer in net.control_layers:  # type: ignore[union-attr]
        scale_output(layer, "after_proj", GAIN)
    ZImageControlNetModel.from_transformer(net, model)

    def residuals(arguments: dict[str, Any]) -> dict[str, Any]:
        given = {name: arguments[name] for name in ("x", "t", "cap_feats")}
        condition = [noise(*image.shape, seed=40) for image in arguments["x"]]
        return {"controlnet_block_samples": net(**given, control_context=condition)}

    return residuals


CONTROLNETS: dict[str, Callable[[nn.Module], Residuals]] = {
    "chroma": _flux_kind((2, 2)),
    "flux": _flux_kind((2, 2)),
    "qwen_image": _qwen_image,
    "sana": _sana,
    "sd3": _sd3,
    "z_image": _z_image,
}
"""For a tiny transformer of that name: makes its control net, which gives further arguments for a call."""


@torch.no_grad()
def controlled(residuals: Residuals, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with what a control net gives for it."""
    return arguments | residuals(arguments)
