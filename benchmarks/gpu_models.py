"""The models that ``gpu.py`` measures: published shapes, random weights, and what their pipelines do between two calls.

Where the shapes come from:

* FLUX.1-dev: the defaults of diffusers' ``FluxTransformer2DModel`` (11.9 B), and the guidance embedding that the dev
  model adds; 1024x1024 pixels, 512 text tokens, 28 steps, guidance 3.5 and the shifted timesteps of ``FluxPipeline``.
* Qwen-Image: the defaults of ``QwenImageTransformer2DModel`` (20.4 B); 1024x1024 pixels, 50 steps, true CFG of 4 with
  the rescaling of ``QwenImagePipeline``. Both prompts have 128 tokens, so that the branches share their graphs.
* Wan 2.1 T2V 1.3B: "Wan-T2V-1.3B" in diffusers' ``scripts/convert_wan_to_diffusers.py`` (1.4 B); 480x832 pixels and 81
  frames, 50 steps and CFG of 5 as ``WanPipeline`` has them; shift 3, as its documentation says for 480p.
* DiT-XL/2-256: the defaults of ``DiTTransformer2DModel`` (0.75 B there, where each block has an embedding of its own)
  and a learned variance; 50 steps of DDIM, CFG of 4 with both halves in one batch, as in ``DiTPipeline``. The latents
  grow a hundredfold, since random weights take no noise out.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

TIME_GAIN = 0.3
"""Times the last layer of the timestep's embedding. With PyTorch's own first weights, what the first block of FLUX adds
changes by 0.4 of itself from step to step; so nothing would ever be skipped. Scaled, it changes by 0.07 to 0.15."""

Around = Callable[[int, int, str], AbstractContextManager[Any]]
"""Of step, steps and branch: what a call of the transformer is made within."""


class Case(ABC):
    """A transformer, what it is called with, and what its pipeline makes of its output."""

    name: ClassVar[str]
    title: ClassVar[str]
    transformer: ClassVar[str]
    """The class, in diffusers."""
    published: ClassVar[dict[str, Any]] = {}
    """Its arguments, where they are not the defaults."""
    tiny: ClassVar[dict[str, Any]]
    lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """Attributes with its blocks, in the order of their calls."""
    steps: ClassVar[int]
    size: ClassVar[tuple[int, ...]]
    """Of the latents: frames, where there are any, height and width; in tokens where the pipeline packs them."""
    tiny_size: ClassVar[tuple[int, ...]] = (4, 4)
    text: ClassVar[int] = 0
    """Tokens of a prompt."""
    guidance: ClassVar[float]
    branches: ClassVar[tuple[str, ...]] = ("cond",)
    coefficients: str | None = None
    """TeaCache's; None: those that were published for the model."""

    def __init__(self, device: torch.device, dtype: torch.dtype, tiny: bool, steps: int | None) -> None:
        import diffusers

        self.device, self.dtype = device, dtype
        self.made = getattr(diffusers, self.transformer)
        self.config: dict[str, Any] = {**self.published, **(self.tiny if tiny else {})}
        with torch.device("meta"):
            empty = self.made(**self.config)
        self.parameters = sum(parameter.numel() for parameter in empty.parameters())
        self.depth = len(self.blocks(empty))
        self.config = dict(empty.config)
        self.run_steps = steps or (8 if tiny else self.steps)
        self.latent_size = self.tiny_size if tiny else self.size
        self.prompt = 8 if tiny else self.text
        if tiny:
            self.coefficients = "identity"

    def build(self, seed: int = 0) -> Any:
        """The transformer with random weights, made on the device and in its type at once."""
        before = torch.get_default_dtype()
        torch.manual_seed(seed)
        try:
            # Converted afterwards, it would take twice the memory, and Qwen-Image's complex frequencies would be cut.
            torch.set_default_dtype(self.dtype)
            with torch.device(self.device):
                model = self.made(**self.config)
        finally:
            torch.set_default_dtype(before)
        in_float32 = set(model._keep_in_fp32_modules or ())  # as from_pretrained has it
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            parts = name.split(".")
            if parts[-2:-1] == ["linear_2"] and parts[-3] in ("timestep_embedder", "time_embedder"):
                value.data.mul_(TIME_GAIN)
            if in_float32 & set(parts):
                value.data = value.data.float()
        return model.eval().requires_grad_(False)

    def blocks(self, model: Any) -> list[nn.Module]:
        """The blocks of ``model`` in the order of their calls."""
        return [block for name in self.lists for block in getattr(model, name)]

    def prepare(self, seed: int = 1) -> None:
        """Draw the first noise and the embeddings of the prompts."""
        noise = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=noise).to(self.device, self.dtype)

        self.noise = self.first(random)
        self.inputs = {branch: self.prompts(random, branch) for branch in self.branches}

    @torch.no_grad()
    def denoise(self, model: Any, steps: int, around: Around) -> Tensor:
        """A whole generation; the latents it ends with."""
        scheduler, latents = self.scheduler(steps), self.noise
        for index, timestep in enumerate(scheduler.timesteps):
            outputs = []
            for branch in self.branches:
                arguments = self.arguments(latents, timestep)
                with around(index, steps, branch):
                    outputs.append(model(**arguments, **self.inputs[branch], return_dict=False)[0])
            latents = scheduler.step(self.guided(outputs), timestep, latents, return_dict=False)[0]
        return latents

    def first(self, random: Callable[..., Tensor]) -> Tensor:
        """The latents to begin with: packed, a token each."""
        height, width = self.latent_size
        return random(1, height * width, self.config["in_channels"])

    def prompts(self, random: Callable[..., Tensor], branch: str) -> dict[str, Any]:
        """The arguments that are the same at every step of a branch."""
        return {"encoder_hidden_states": random(1, self.prompt, self.config["joint_attention_dim"])}

    def arguments(self, latents: Tensor, timestep: Tensor) -> dict[str, Any]:
        """The arguments of one step."""
        return {"hidden_states": latents, "timestep": timestep.expand(1).to(latents.dtype) / 1000}

    def guided(self, outputs: list[Tensor]) -> Tensor:
        """What the scheduler is given."""
        return outputs[0]

    @abstractmethod
    def scheduler(self, steps: int) -> Any:
        """A fresh scheduler of diffusers at the start of a run."""

    def flow(self, steps: int, mu: float | None = None, **config: Any) -> Any:
        """FlowMatchEuler, shifted by the number of tokens (``mu``) or by a constant."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=mu is not None, **config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=self.device)
        scheduler.set_begin_index(0)  # as pipelines do; else the index would be looked up on the device
        return scheduler


class Flux(Case):
    name, title, transformer = "flux", "FLUX.1-dev, 1024x1024", "FluxTransformer2DModel"
    published: ClassVar = {"guidance_embeds": True}
    tiny: ClassVar = {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 16,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    lists = ("transformer_blocks", "single_transformer_blocks")
    steps, size, text, guidance = 28, (64, 64), 512, 3.5

    def prompts(self, random: Callable[..., Tensor], branch: str) -> dict[str, Any]:
        height, width = self.latent_size
        places = torch.zeros(height, width, 3)
        places[..., 1] += torch.arange(height)[:, None]
        places[..., 2] += torch.arange(width)
        return {
            **super().prompts(random, branch),
            "pooled_projections": random(1, self.config["pooled_projection_dim"]),
            "guidance": torch.full((1,), self.guidance, device=self.device),
            "img_ids": places.reshape(-1, 3).to(self.device, self.dtype),
            "txt_ids": torch.zeros(self.prompt, 3, device=self.device, dtype=self.dtype),
        }

    def scheduler(self, steps: int) -> Any:
        # 0.5 at 256 tokens, 1.15 at 4096
        tokens = self.latent_size[0] * self.latent_size[1]
        return self.flow(steps, mu=0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256), shift=3.0)


class Qwen(Case):
    name, title, transformer = "qwen", "Qwen-Image, 1024x1024, true CFG", "QwenImageTransformer2DModel"
    tiny: ClassVar = {
        "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 16, "out_channels": 4,
        "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    steps, size, text, guidance = 50, (64, 64), 128, 4.0
    branches = ("cond", "uncond")

    def prompts(self, random: Callable[..., Tensor], branch: str) -> dict[str, Any]:
        return {**super().prompts(random, branch), "img_shapes": [[(1, *self.latent_size)]]}

    def guided(self, outputs: list[Tensor]) -> Tensor:
        positive, negative = outputs
        both: Tensor = negative + self.guidance * (positive - negative)
        rescaled: Tensor = both * (positive.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))
        return rescaled

    def scheduler(self, steps: int) -> Any:
        # 0.5 at 256 tokens, 0.9 at 8192
        tokens = self.latent_size[0] * self.latent_size[1]
        return self.flow(steps, mu=0.5 + (tokens - 256) * (0.9 - 0.5) / (8192 - 256), shift_terminal=0.02)


class Wan(Case):
    name, title, transformer = "wan", "Wan 2.1 T2V 1.3B, 480x832, 81 frames, CFG", "WanTransformer3DModel"
    published: ClassVar = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    tiny: ClassVar = {
        "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 4, "out_channels": 4,
        "ffn_dim": 64, "text_dim": 32, "freq_dim": 32,
    }  # fmt: skip
    lists = ("blocks",)
    steps, size, tiny_size, text, guidance = 50, (21, 60, 104), (2, 8, 8), 512, 5.0
    branches = ("cond", "uncond")

    def first(self, random: Callable[..., Tensor]) -> Tensor:
        return random(1, self.config["in_channels"], *self.latent_size).float()

    def prompts(self, random: Callable[..., Tensor], branch: str) -> dict[str, Any]:
        return {"encoder_hidden_states": random(1, self.prompt, self.config["text_dim"])}

    def arguments(self, latents: Tensor, timestep: Tensor) -> dict[str, Any]:
        return {"hidden_states": latents.to(self.dtype), "timestep": timestep.expand(1)}

    def guided(self, outputs: list[Tensor]) -> Tensor:
        positive, negative = (output.float() for output in outputs)
        return negative + self.guidance * (positive - negative)

    def scheduler(self, steps: int) -> Any:
        return self.flow(steps, shift=3.0)


class DiT(Case):
    name, title, transformer = "dit", "DiT-XL/2-256, batched CFG", "DiTTransformer2DModel"
    published: ClassVar = {"out_channels": 8}
    tiny: ClassVar = {
        "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
        "sample_size": 8, "num_embeds_ada_norm": 10,
    }  # fmt: skip
    steps, size, tiny_size, guidance = 50, (32, 32), (8, 8), 4.0
    coefficients = "identity"  # none were published

    def first(self, random: Callable[..., Tensor]) -> Tensor:
        return random(1, self.config["in_channels"], *self.latent_size).repeat(2, 1, 1, 1)

    def prompts(self, random: Callable[..., Tensor], branch: str) -> dict[str, Any]:
        classes = self.config["num_embeds_ada_norm"]
        return {"class_labels": torch.tensor([classes // 3, classes], device=self.device)}

    def arguments(self, latents: Tensor, timestep: Tensor) -> dict[str, Any]:
        return {"hidden_states": latents, "timestep": timestep[None].to(self.device).expand(2)}

    def guided(self, outputs: list[Tensor]) -> Tensor:
        noise = outputs[0][:, : self.config["in_channels"]]  # the rest is the variance
        positive, negative = noise.chunk(2)
        return (negative + self.guidance * (positive - negative)).repeat(2, 1, 1, 1)

    def scheduler(self, steps: int) -> Any:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(steps)
        return scheduler


CASES: dict[str, type[Case]] = {case.name: case for case in (Flux, Qwen, Wan, DiT)}


def twin(model: Any) -> Any:
    """Another module over the same weights, in the same memory: what is done to it leaves the first as it is."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
