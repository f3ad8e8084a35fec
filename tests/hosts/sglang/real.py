"""SGLang-Diffusion itself in one process on a CPU: its set-up, its denoising stage, its requests."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .models import TINY, build

STEPS = 8


def start() -> None:
    """What a worker does before it runs: its plugins, its arguments, its process groups."""
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        maybe_init_distributed_environment_and_model_parallel,
        model_parallel_is_initialized,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks, load_plugins
    from sglang.multimodal_gen.runtime.server_args import set_global_server_args

    load_plugins()
    apply_plugin_hooks()
    set_global_server_args(server_args())
    if not model_parallel_is_initialized():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
        os.environ.update({key: value for key, value in alone.items() if key not in os.environ})
        os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
        maybe_init_distributed_environment_and_model_parallel(
            tp_size=int(os.environ["WORLD_SIZE"]), sp_size=1
        )


def server_args(**changes: Any) -> SimpleNamespace:
    """The arguments of a server, as far as a denoising stage reads them."""
    dit = SimpleNamespace(
        hidden_size=32, num_attention_heads=2, boundary_ratio=None, prefix="", arch_config=SimpleNamespace()
    )
    return SimpleNamespace(
        **{
            "attention_backend": None,
            "attention_backend_config": None,
            "comfyui_mode": False,
            "disable_autocast": True,
            "enable_cfg_parallel": False,
            "enable_breakable_cuda_graph": False,
            "enable_layerwise_nvtx_marker": False,
            "enable_torch_compile": False,
            "kv_gather_degree": 1,
            "sp_split_auto": False,
            "model_loaded": {},
            "model_paths": {},
            "pipeline_config": PipelineConfig(dit),
        }
        | changes
    )


class PipelineConfig:
    """What a pipeline tells its denoising stage, of a plain text-to-image pipeline."""

    should_use_guidance = False
    dit_precision = vae_precision = "fp32"
    task_type = None

    def __init__(self, dit_config: Any) -> None:
        self.dit_config = dit_config

    def get_classifier_free_guidance_scale(self, batch: Any, scale: Any) -> Any:
        return scale

    def slice_noise_pred(self, noise: Tensor, latents: Tensor) -> Tensor:
        return noise

    def postprocess_cfg_noise(self, batch: Any, noise: Tensor, noise_cond: Tensor) -> Tensor:
        return noise


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and fused operations of torch instead of those for a GPU."""
    from sglang.multimodal_gen.runtime.layers import elementwise, layernorm
    from sglang.multimodal_gen.runtime.layers.attention import layer
    from sglang.multimodal_gen.runtime.layers.attention.backends.sdpa import SDPABackend
    from sglang.multimodal_gen.runtime.layers.custom_op import CustomOp

    def modulated(x: Tensor, scale: Tensor, shift: Tensor, scale_constant: float = 1.0, **_: Any) -> Tensor:
        return x * (scale_constant + scale) + shift

    attention = {
        "get_attn_backend": lambda *_, **__: SDPABackend,
        "get_compute_dtype": lambda *_, **__: torch.float32,
        "_resolve_sp_attention_mode": lambda *_, **__: ("ulysses", False),
        "_maybe_install_backend_autotune": lambda *_, **__: None,
    }
    with (
        patch.multiple(layer, **attention),
        patch.object(CustomOp, "dispatch_forward", lambda op: op.forward_native),
        patch.object(layernorm, "fuse_scale_shift_kernel", modulated),
        patch.object(elementwise, "fuse_scale_shift_kernel", modulated),
    ):
        yield


def make_batch(steps: int, timesteps: Tensor | None = None, guided: bool = False, **params: Any) -> Any:
    """A request as it comes to the stage; ``params`` are of SGLang's SamplingParams."""
    from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
    from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req

    batch = Req(sampling_params=SamplingParams(prompt="a", **params))
    batch.timesteps, batch.num_inference_steps = timesteps, steps
    batch.do_classifier_free_guidance = guided
    batch.guidance_scale = batch.guidance_scale_2 = 3.0
    return batch


class Resident:
    """All components stay where they are."""

    state = SimpleNamespace(stage_name="denoising")

    def component_name_for_module(self, module: Any, name: str) -> str:
        return name

    def begin_use(self, use: Any, module: Any) -> None: ...

    def finish_active_use(self) -> None: ...


class Server:
    """A denoising stage of SGLang, by its own constructor, that serves requests as a worker does."""

    def __init__(self, kind: str, second: str | None = None, **arguments: Any) -> None:
        from sglang.multimodal_gen.runtime.pipelines_core.stages.denoising import DenoisingStage
        from sglang.multimodal_gen.runtime.server_args import set_global_server_args

        self.kind = kind
        self.arguments = server_args(**arguments)
        set_global_server_args(self.arguments)
        self.first = build(kind)
        self.second = None if second is None else build(second, seed=1)
        self.stage = DenoisingStage(self.first, scheduler=None, transformer_2=self.second)
        self.stage._component_residency_manager = Resident()
        self.ran: Counter[str] = Counter()
        """Blocks that ran, by list and number (``transformer_2.`` before those of the second), counted in a child."""
        for prefix, model in (("", self.first), ("transformer_2.", self.second)):
            if model is not None:
                self._count(prefix, model)

    def _count(self, prefix: str, model: Any) -> None:
        tiny = TINY[self.kind]
        for path in tiny.blocks:
            for number, block in enumerate(getattr(model, path)):
                name = f"{prefix}{path}.{number}"
                child = getattr(block, tiny.inner)
                child.register_forward_hook(lambda *_, name=name: self.ran.update([name]))

    def request(
        self,
        steps: int = STEPS,
        guided: bool = False,
        seed: int = 0,
        **params: Any,
    ) -> Tensor:
        """Serve one request; its latents.

        Args:
            steps: denoising steps.
            guided: with a negative prompt, in calls of its own.
            seed: of its noise and prompts.
            params: of SGLang's SamplingParams.
        """
        from sglang.multimodal_gen.runtime.distributed.cfg_policy import CFGPolicy
        from sglang.multimodal_gen.runtime.models.schedulers.scheduling_flow_match_euler_discrete import (
            FlowMatchEulerDiscreteScheduler,
        )
        from sglang.multimodal_gen.runtime.pipelines_core.stages.denoising import DenoisingContext

        tiny, random = TINY[self.kind], torch.Generator().manual_seed(seed)
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        latents = torch.randn(tiny.latents, generator=random)
        prompts = [tiny.prompt(random, self.first) for _ in range(2)]
        batch = make_batch(steps, scheduler.timesteps, guided, **params)
        batch.latents, batch.raw_latent_shape, batch.scheduler = latents, latents.shape, scheduler
        boundary = None if self.second is None else 500.0
        self.low = int((scheduler.timesteps < 500).sum()) if boundary else 0
        self.ran.clear()
        self.stage._maybe_enable_cache_dit_and_torch_compile(
            (steps - self.low, self.low) if boundary else steps, batch
        )
        policy = CFGPolicy().build(batch, {}, *prompts)
        context = DenoisingContext(
            scheduler=scheduler,
            extra_step_kwargs={},
            target_dtype=torch.float32,
            autocast_enabled=False,
            timesteps=scheduler.timesteps,
            num_inference_steps=steps,
            num_warmup_steps=0,
            image_kwargs={},
            pos_cond_kwargs=prompts[0],
            neg_cond_kwargs=prompts[1],
            latents=latents,
            boundary_timestep=boundary,
            z=None,
            reserved_frames_mask=None,
            seq_len=None,
            guidance=None,
            is_warmup=False,
            cfg_policy=policy,
        )
        self.stage._run_denoising_loop(context, batch, self.arguments)
        return context.latents
