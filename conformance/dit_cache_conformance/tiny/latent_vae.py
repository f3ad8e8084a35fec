"""The VAEs that the tiny pipelines cannot do without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .copies import built_once
from .weights import seeded


@built_once
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


@built_once
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


def latent_space() -> nn.Module:
    """A VAE that tells what its latents are like, and neither encodes nor decodes."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

    class LatentSpace(ModelMixin, ConfigMixin):  # type: ignore[misc]
        spatial_compression_ratio = 8
        temporal_compression_ratio = 4

        @register_to_config  # type: ignore[untyped-decorator]
        def __init__(
            self,
            latent_channels: int = 4,
            z_dim: int = 4,
            scale_factor_spatial: int = 8,
            scale_factor_temporal: int = 4,
            batch_norm_eps: float = 1e-5,
            block_out_channels: tuple[int, ...] = (4, 4, 4, 4),
            scaling_factor: float = 1.0,
        ) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(16)
            self.register_buffer("latents_mean", torch.zeros(4))
            self.register_buffer("latents_std", torch.ones(4))

    space: nn.Module = LatentSpace()
    return space


def sound_space() -> nn.Module:
    """As `latent_space`, of sound: two channels and two bands, 4 numbers at a time."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

    class SoundSpace(ModelMixin, ConfigMixin):  # type: ignore[misc]
        mel_compression_ratio = 2
        temporal_compression_ratio = 4

        @register_to_config  # type: ignore[untyped-decorator]
        def __init__(
            self,
            latent_channels: int = 2,
            mel_bins: int = 4,
            sample_rate: int = 16000,
            mel_hop_length: int = 1600,
        ) -> None:
            super().__init__()
            self.register_buffer("latents_mean", torch.zeros(4))
            self.register_buffer("latents_std", torch.ones(4))

    space: nn.Module = SoundSpace()
    return space


def same_for_both() -> nn.Module:
    """Gives the prompt's embedding to the video and to the sound (LTX-2 has a network for that)."""
    from diffusers.models.modeling_utils import ModelMixin

    class SameForBoth(ModelMixin):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1))

        def forward(self, prompt: torch.Tensor, mask: torch.Tensor, padding_side: str) -> Any:
            return prompt, prompt, mask

    return SameForBoth()  # type: ignore[no-any-return]


def video_vae() -> nn.Module:
    """A small real `AutoencoderKLWan` (factors 4 and 8, 4 channels): WanVACE encodes what controls it."""
    from diffusers import AutoencoderKLWan

    def make() -> Any:
        return AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )

    return seeded(make)
