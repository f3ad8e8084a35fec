"""A platform of vLLM-Omni for the CPU: just enough to load a pipeline and to run its denoising."""

from __future__ import annotations

import gc

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

SOME = 8 * 2**30
"""Bytes of memory that are said to be there."""


class OnCPU(OmniPlatform, CpuPlatform):
    """Devices are called "cpu", attention is torch's own, groups speak gloo."""

    _omni_enum = OmniPlatformEnum.OOT
    device_type = "cpu"
    dist_backend = "gloo"

    @classmethod
    def get_diffusion_attn_backend_cls(cls, *_: object, **__: object) -> str:
        from vllm_omni.diffusion.attention.backends.sdpa import SDPAImpl

        # Its dispatch by platform has no branch for a CPU; what it calls for CUDA is torch's attention as well.
        SDPAImpl.forward = SDPAImpl.forward_cuda
        return "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        return True

    @classmethod
    def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def get_device_count(cls) -> int:
        return 1

    @classmethod
    def get_device_version(cls) -> str | None:
        return None

    @classmethod
    def synchronize(cls) -> None:
        return None

    @classmethod
    def get_free_memory(cls, device: torch.device | None = None) -> int:
        return SOME

    @classmethod
    def get_device_memory(cls, device: torch.device | None = None) -> tuple[int, int]:
        return SOME, SOME

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return SOME

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "cpu"

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        return None

    @classmethod
    def empty_cache(cls) -> None:
        gc.collect()

    @classmethod
    def reset_peak_memory_stats(cls, device: torch.device | None = None) -> None:
        return None

    @classmethod
    def max_memory_allocated(cls, device: torch.device | None = None) -> int:
        return 0

    @classmethod
    def max_memory_reserved(cls, device: torch.device | None = None) -> int:
        return 0


def _silu_and_mul(out: torch.Tensor, given: torch.Tensor) -> None:
    half = given.shape[-1] // 2
    out.copy_(torch.nn.functional.silu(given[..., :half]) * given[..., half:])


# One of the operators of vLLM's C++ part, which is made for CUDA: by its definition, in torch.
_library = torch.library.Library("_C", "FRAGMENT")
_library.define("silu_and_mul(Tensor! result, Tensor input) -> ()")
_library.impl("silu_and_mul", _silu_and_mul, "CPU")
