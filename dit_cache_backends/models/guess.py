"""Small inputs for a model that nobody knows, guessed from the names of its forward's parameters and its ``config``."""

import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends.errors import CardError
from dit_cache_backends.models import uncompiled

TOKENS, SIDE, FRAMES, TEXT = 16, 4, 2, 8
"""A picture of 4 x 4 tokens, a video of 2 frames, a text of 8 tokens."""

CHANNELS = ("in_channels", "latent_channels", "input_dim", "out_channels", "input_size")
TEXT_DIMS = (
    "joint_attention_dim",
    "text_embed_dim",
    "caption_channels",
    "text_dim",
    "cap_feat_dim",
    "cross_attention_input_dim",
    "cross_attention_dim",
    "context_in_dim",
    "encoder_hid_dim",
    "context_dim",
    "text_embedding_dim",
    "in_text_dim",
)
LATENTS = ("hidden_states", "x", "sample", "latents", "img", "inputs")
TEXTS = (
    "encoder_hidden_states",
    "context",
    "txt",
    "cap_feats",
    "text_embeds",
    "text",
    "encoder_hidden_states_text",
)


def guess_inputs(module: nn.Module) -> dict[str, Any]:
    """Arguments with which ``module`` runs, on the device and in the dtype of its parameters.

    Raises:
        CardError: if none of the guesses runs, with what the one that came furthest met.
    """
    inner = uncompiled(module)
    kept = next(module.parameters(), torch.empty(0))
    state = torch.random.get_rng_state()
    furthest: tuple[int, Exception] | None = None
    try:
        for inputs in _guesses(inner, kept):
            error = _met(module, inputs)
            if error is None:
                return inputs
            depth = len(list(traceback.walk_tb(error.__traceback__)))
            if furthest is None or depth > furthest[0]:
                furthest = depth, error
    finally:
        torch.random.set_rng_state(state)
    names = ", ".join(_parameters(inner))
    why = "No parameter has a known name."
    if furthest is not None:
        why = f"What came furthest met {type(furthest[1]).__name__}: {furthest[1]}."
    raise CardError(
        f"The inputs of {type(inner).__name__} cannot be guessed. {why} Its forward takes {names}. Give them yourself: "
        "inspect_transformer(module, name=tensor, ...), or --inputs FILE with the shapes."
    )


def _met(module: nn.Module, inputs: dict[str, Any]) -> Exception | None:
    try:
        with torch.no_grad():
            module(**inputs)
    except Exception as error:  # whatever a model raises at inputs that do not fit it
        return error
    return None


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    found = dict(list(inspect.signature(type(module).forward).parameters.items())[1:])
    return {n: each for n, each in found.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


def _guesses(module: nn.Module, kept: Tensor) -> Iterator[dict[str, Any]]:
    config = getattr(module, "config", None)
    config = dict(config) if isinstance(config, Mapping) else {}
    parameters = _parameters(module)
    needed = [name for name, each in parameters.items() if each.default is each.empty]
    offered = [name for name in parameters if name not in ("return_dict",)]
    channels, dims = _numbers(config, CHANNELS, 4), _numbers(config, TEXT_DIMS, 32)
    makers = _Makers(config, kept)
    for latents, channel, dim, names in itertools.product(
        makers.latents, channels, dims, (offered, needed) if needed != offered else (needed,)
    ):
        inputs: dict[str, Any] = {}
        for name in names:
            value = makers.make(name, latents, channel, dim)
            if value is not None or name in needed:
                inputs[name] = value
        if "return_dict" in parameters:
            inputs["return_dict"] = False
        if any(isinstance(value, (Tensor, list)) for value in inputs.values()):
            yield inputs


def _numbers(config: Mapping[str, Any], names: tuple[str, ...], otherwise: int) -> list[int]:
    """What the configuration says under any of the names."""
    found = [config[name] for name in names if isinstance(config.get(name), int)]
    found += [n for name in names if isinstance(config.get(name), (list, tuple)) for n in config[name][:1]]
    return list(dict.fromkeys(found)) or [otherwise]


class _Makers:
    """Makes an argument by its name."""

    latents = ("image", "video", "tokens", "frames", "sound", "list")

    def __init__(self, config: Mapping[str, Any], kept: Tensor) -> None:
        self.config = config
        self.kept = kept

    def make(self, name: str, latents: str, channels: int, dim: int) -> Any:
        """The argument, or None where the name says nothing."""
        if name in LATENTS:
            shape = {
                "image": (1, channels, 2 * SIDE, 2 * SIDE),
                "video": (1, channels, FRAMES, 2 * SIDE, 2 * SIDE),
                "tokens": (1, TOKENS * (FRAMES if self._is_video() else 1), channels),
                "frames": (1, FRAMES, channels, 2 * SIDE, 2 * SIDE),
                "sound": (1, channels, TOKENS),
                "list": (channels, 1, 2 * SIDE, 2 * SIDE),
            }[latents]
            made = self._random(*shape)
            return [made] if latents == "list" else made
        if name in TEXTS:
            return [self._random(TEXT, dim)] if latents == "list" else self._random(1, TEXT, dim)
        makers: dict[str, Callable[[], Any]] = {
            "timestep": self._time,
            "timesteps": self._time,
            "t": self._time,
            "time": self._time,
            "guidance": self._guidance,
            "pooled_projections": lambda: self._pooled("pooled_projection_dim", "text_embed_2_dim"),
            "encoder_attention_mask": lambda: torch.ones(1, TEXT, dtype=torch.bool, device=self.kept.device),
            "encoder_mask": lambda: torch.ones(1, TEXT, device=self.kept.device),
            "img_ids": lambda: self._ids(TOKENS),
            "txt_ids": lambda: self._ids(TEXT),
            "img_shapes": lambda: [[(1, SIDE, SIDE)]],
            "class_labels": lambda: torch.zeros(1, dtype=torch.long, device=self.kept.device),
            "added_cond_kwargs": lambda: {"resolution": None, "aspect_ratio": None},
            "num_frames": lambda: FRAMES,
            "height": lambda: SIDE,
            "width": lambda: SIDE,
            "fps": lambda: 24,
        }
        return makers[name]() if name in makers else None

    def _is_video(self) -> bool:
        return "num_frames" in self.config or "patch_size_t" in self.config

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.kept.device).to(self.kept.dtype)

    def _time(self) -> Tensor:
        return torch.full((1,), 0.5, device=self.kept.device, dtype=self.kept.dtype)

    def _guidance(self) -> Tensor | None:
        return 4 * self._time() if self.config.get("guidance_embeds", True) else None

    def _pooled(self, *names: str) -> Tensor | None:
        found = _numbers(self.config, names, 0)[0]
        return self._random(1, found) if found else None

    def _ids(self, tokens: int) -> Tensor:
        axes = self.config.get("axes_dims_rope") or self.config.get("rope_axes_dim") or (0, 0, 0)
        return torch.zeros(tokens, len(axes), device=self.kept.device)
