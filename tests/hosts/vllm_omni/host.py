"""vLLM-Omni's process-wide state as one of its workers has it: groups of one rank each, and a forward context."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm_omni.diffusion.data import OmniDiffusionConfig, TransformerConfig
from vllm_omni.diffusion.distributed import parallel_state
from vllm_omni.diffusion.forward_context import set_forward_context


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def worker(rank: int = 0, ranks: int = 1, port: int | None = None, **parallel: Any) -> Iterator[None]:
    """The groups and contexts within which models are made and called; `parallel` says how ranks share the work."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port or free_port()}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()})
    config = VllmConfig()
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(world_size=ranks, rank=rank)
        parallel_state.initialize_model_parallel(backend="gloo", **parallel)
        try:
            with set_forward_context(vllm_config=config, omni_diffusion_config=od_config(**parallel)):
                yield
        finally:
            parallel_state.destroy_distributed_env()


def od_config(transformer: dict[str, Any] | None = None, **parallel: Any) -> OmniDiffusionConfig:
    """The configuration of a diffusion stage, with what a transformer's `config.json` would say."""
    config = OmniDiffusionConfig(parallel_config=dict(parallel)) if parallel else OmniDiffusionConfig()
    config.tf_model_config = TransformerConfig(params=transformer or {})
    return config


def filled(model: nn.Module, seed: int = 0, spread: float = 0.08) -> nn.Module:
    """Seeded random weights, ready to be called; without them each block would be empty, or nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = (
                1.0 if name.endswith("norm.weight") or (".norm" in name and name.endswith(".weight")) else 0.0
            )
            parameter.copy_(mean + spread * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            method = getattr(module, "quant_method", None)
            if method is not None:
                method.process_weights_after_loading(module)
    return model.eval().requires_grad_(False)
