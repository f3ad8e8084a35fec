"""What a model's steps are compared by: the modulated input of its first block, or the embedding of the time alone.

Read through the model's own modules (its norms, its embedders) at the entry of the first block, so that a change in
their weights, a LoRA or a hook is seen. Nothing is run that the model would not run itself, and nothing is kept.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Given = Callable[[str], Any]
"""An argument by name; None where none of that name was given."""

H, E, T = "hidden_states", "encoder_hidden_states", "temb"


@dataclass(frozen=True, slots=True)
class Signal:
    """Read from the first block of the first stack and the arguments it is called with."""

    name: str
    read: Callable[[nn.Module, Given], Tensor]
    """Given the block and its arguments. Must change neither."""


@dataclass(frozen=True, slots=True)
class TimeSignal:
    """Depends on the timestep alone, so that a whole run can be worked out before it begins."""

    name: str
    argument: str
    """The argument of the transformer's forward that is the timestep."""
    embed: Callable[[nn.Module, Tensor, torch.dtype, Given], Tensor]
    """Given the transformer, timesteps ``[n]``, the dtype of its latents, and its own arguments: ``[n, ...]``."""


class BlockArguments:
    """The arguments of a block's call, by name: a ``Given``."""

    __slots__ = ("_args", "_kwargs", "_positions")

    def __init__(self, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs
        cls: Any = type(block)
        self._positions = _positions(cls)

    def __call__(self, name: str) -> Any:
        if name in self._kwargs:
            return self._kwargs[name]
        position = self._positions.get(name, len(self._args))
        return self._args[position] if position < len(self._args) else None


@functools.lru_cache(maxsize=128)
def _positions(cls: Any) -> dict[str, int]:
    return {name: number - 1 for number, name in enumerate(inspect.signature(cls.forward).parameters)}


def adaptive_norm(block: Any, given: Given) -> Tensor:
    """FLUX.1, SD3, HunyuanVideo, Mochi, Lumina: ``norm1`` takes the embedding and modulates itself."""
    if given("token_replace_emb") is not None:  # HunyuanVideo's image-to-video
        return _first(block.norm1(given(H), given(T), given("token_replace_emb"), given("num_tokens")))
    return _first(block.norm1(given(H), emb=given(T)))


def chroma(block: Any, given: Given) -> Tensor:
    """As FLUX.1, with the modulation of image and text in one tensor ``[batch, 12, dim]``."""
    return _first(block.norm1(given(H), emb=given(T)[:, :6]))


def joint_norm(block: Any, given: Given) -> Tensor:
    """GLM-Image: one norm for both streams."""
    return _first(block.norm1(given(H), given(E), given(T)))


def cosmos(block: Any, given: Given) -> Tensor:
    """Cosmos: the position is added in the block, before the norm."""
    position = given("extra_pos_emb")
    tokens = given(H) if position is None else given(H) + position
    return _first(block.norm1(tokens, given("embedded_timestep"), given(T)))


def class_norm(block: Any, given: Given) -> Tensor:
    """DiT: ``norm1`` embeds the timestep and the class itself."""
    tokens = given(H)
    labels = given("class_labels")
    return _first(block.norm1(tokens, given("timestep"), labels, hidden_dtype=tokens.dtype))


def shared_modulation(block: Any, given: Given) -> Tensor:
    """PixArt: a modulation shared by all blocks, ``[batch, 6 * dim]``, and each block's own table ``[6, dim]``."""
    tokens, table = given(H), block.scale_shift_table
    shared = given("timestep").reshape(tokens.shape[0], table.shape[0], -1)
    shift, scale = (table[None] + shared)[:, :2].chunk(2, dim=1)
    return _modulated(block.norm1(tokens), scale, shift)


def ltx_video(block: Any, given: Given) -> Tensor:
    """LTX-Video: as PixArt, with a modulation for each token, ``[batch, tokens or 1, 6 * dim]``."""
    time, table = given(T), block.scale_shift_table
    values = table[None, None] + time.reshape(*time.shape[:2], table.shape[0], -1)
    return _modulated(block.norm1(given(H)), values[:, :, 1], values[:, :, 0])


def qwen_image(block: Any, given: Given) -> Tensor:
    """Qwen-Image: the block's own modulation, where a picture to edit may have one of its own."""
    modulation = block.img_mod(given(T)).chunk(2, dim=-1)[0]
    return _first(block._modulate(block.img_norm1(given(H)), modulation, given("modulate_index")))


def flux2(block: Any, given: Given) -> Tensor:
    """FLUX.2: the modulation comes with the call, ``[batch, 6 * dim]`` or one for each token."""
    modulation = given("temb_mod_img")
    shift, scale, *_ = (modulation if modulation.dim() == 3 else modulation[:, None]).chunk(6, dim=-1)
    return _modulated(block.norm1(given(H)), scale, shift)


def z_image(block: Any, given: Given) -> Tensor:
    """Z-Image: scaled, not shifted; clean tokens of a picture to edit have a modulation of their own."""
    noisy = given("noise_mask")
    if noisy is None:
        scale = block.adaLN_modulation(given("adaln_input"))[:, None]
    else:
        of_noisy, of_clean = (block.adaLN_modulation(given(name)) for name in ("adaln_noisy", "adaln_clean"))
        scale = torch.where(noisy[..., None] == 1, of_noisy[:, None], of_clean[:, None])
    return _modulated(block.attention_norm1(given("x")), scale.chunk(4, dim=-1)[0])


def minimax_h3(block: Any, given: Given) -> Tensor:
    """MiniMax-H3: a row of the modulation for each token."""
    rows = given("adaln_indices")
    shift, scale, *_ = block.adaln_proj(given(T))
    return _modulated(block.norm1(given(H)), scale.index_select(0, rows), shift.index_select(0, rows))


def plain_norm(block: Any, given: Given) -> Tensor:
    """Stable Audio: the time is a token of the sequence, not a modulation."""
    return _first(block.norm1(given(H)))


def tokens(block: Any, given: Given) -> Tensor:
    """The embedded latents as they enter the first block, as ComfyUI-TeaCache compares HiDream-I1 dev and fast."""
    return _first(given(H))


def wan_time(model: Any, timesteps: Tensor, dtype: torch.dtype, given: Given) -> Tensor:
    """Wan, ``[n, dim]``: the time embedding before it is projected (``e`` in Wan's own code)."""
    embedder = model.condition_embedder
    sines = embedder.timesteps_proj(timesteps)
    kept = next(iter(embedder.time_embedder.parameters())).dtype  # float32, also in a bfloat16 model
    if kept != torch.int8:
        sines = sines.to(kept)
    return _first(embedder.time_embedder(sines)).to(dtype)


def wan_time_projection(model: Any, timesteps: Tensor, dtype: torch.dtype, given: Given) -> Tensor:
    """Wan, ``[n, 6 * dim]``: the projected time embedding that modulates the blocks (``e0``)."""
    embedder = model.condition_embedder
    return _first(embedder.time_proj(embedder.act_fn(wan_time(model, timesteps, dtype, given))))


def cogvideox_time(model: Any, timesteps: Tensor, dtype: torch.dtype, given: Given) -> Tensor:
    """CogVideoX and ConsisID, ``[n, time_embed_dim]``; with the ``ofs`` of CogVideoX1.5's image-to-video."""
    embedded = _first(model.time_embedding(model.time_proj(timesteps).to(dtype)))
    if getattr(model, "ofs_embedding", None) is not None:
        embedded = embedded + model.ofs_embedding(model.ofs_proj(given("ofs")).to(dtype))
    return embedded


def hidream_time(model: Any, timesteps: Tensor, dtype: torch.dtype, given: Given) -> Tensor:
    """HiDream-I1, ``[n, dim]``."""
    return _first(model.t_embedder(timesteps, dtype))


def _first(result: Any) -> Tensor:
    """What a norm gives first: the modulated tensor; its gates follow."""
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found


def _modulated(normed: Any, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    scaled: Tensor = normed * (1 + scale)
    return scaled if shift is None else scaled + shift
