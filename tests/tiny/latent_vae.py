"""The two VAEs that the tiny pipelines cannot do without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .weights import seeded


def control_vae() -> nn.Module:
    """A small real `AutoencoderKL` (factor 8, 4 channels): FLUX's ControlNet pipeline encodes with it."""
    from diffusers import AutoencoderKL

    def make() -> Any:
        return AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            scaling_factor=1.0,
            shift_factor=0.0,
        )

    return seeded(make)


def latent_recorder() -> nn.Module:
    """A VAE that decodes to the latents themselves and keeps them in `.latents`.

    `DiTPipeline` always decodes and clamps the picture; the tests want the latents as they were.
    """
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.autoencoders.vae import DecoderOutput
    from diffusers.models.modeling_utils import ModelMixin

    class LatentRecorder(ModelMixin, ConfigMixin):  # type: ignore[misc]
        @register_to_config  # type: ignore[untyped-decorator]
        def __init__(self, scaling_factor: float = 1.0) -> None:
            super().__init__()
            self.latents: torch.Tensor | None = None
            self.place = nn.Parameter(torch.zeros(1))  # a pipeline asks its modules for their device

        def decode(self, latents: torch.Tensor) -> Any:
            self.latents = latents
            return DecoderOutput(sample=latents)

    recorder: nn.Module = LatentRecorder()
    return recorder
