"""The entry points that make vLLM and vLLM-Omni run on a machine without an accelerator."""

from __future__ import annotations


def vllm_platform() -> str:
    """vLLM's own CPU platform, which its wheel for CUDA does not choose by itself."""
    return "vllm.platforms.cpu.CpuPlatform"


def omni_platform() -> str:
    """vLLM-Omni has none of its own."""
    return "vllm_omni_on_cpu.platform.OnCPU"
