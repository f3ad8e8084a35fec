"""Which published coefficients are meant when nobody names any: by the class and the configuration of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.strategies.tea_cache_coefficients import PUBLISHED


@dataclass(frozen=True, slots=True)
class Use:
    """A model that a set is taken for."""

    transformer: str
    """The class that the model's card is of."""
    name: str
    config: Mapping[str, object] = field(default_factory=dict)
    """What the transformer's ``config`` says."""
    pipelines: tuple[str, ...] = ()
    """Only in a pipeline whose class has one of these names; empty for any."""
    rules: tuple[str, ...] = ()
    """Only under one of these rules, where their sources differ; empty for any."""
    experts: int = 1
    """How many transformers the pipeline has."""
    donor: str = ""
    """The model that the set was fitted on, where it was copied from another one; empty where it is its own."""


_FLUX = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "in_channels": 64}
_KONTEXT = ("FluxKontextPipeline", "FluxKontextInpaintPipeline")
_COG = "CogVideoXTransformer3DModel"
_WAN = "WanTransformer3DModel"
_WAN_14B = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16}
_WAN_I2V = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 36, "image_dim": 1280}
_HIDREAM = {"num_layers": 16, "num_single_layers": 32}
_NEAR = ("vllm_omni", "official", "comfyui")

USES: tuple[Use, ...] = (
    Use("FluxTransformer2DModel", "flux_dev", {**_FLUX, "guidance_embeds": True}),
    Use("FluxTransformer2DModel", "flux_dev", {**_FLUX, "guidance_embeds": False}, donor="FLUX.1-dev"),
    Use("FluxTransformer2DModel", "flux_kontext", _FLUX, pipelines=_KONTEXT),
    Use(
        "HunyuanVideoTransformer3DModel",
        "hunyuan_video",
        {"num_layers": 20, "num_single_layers": 40, "in_channels": 16, "image_condition_type": None},
    ),
    Use("LatteTransformer3DModel", "latte", {"num_layers": 28, "num_attention_heads": 16}),
    Use("LTXVideoTransformer3DModel", "ltx_video", {"num_layers": 28, "num_attention_heads": 32}),
    Use("MochiTransformer3DModel", "mochi", {"num_layers": 48, "num_attention_heads": 24}),
    Use(_COG, "cogvideox_2b", {"num_layers": 30, "num_attention_heads": 30}),
    Use(_COG, "cogvideox_5b", {"num_layers": 42, "num_attention_heads": 48, "patch_size_t": None}),
    Use(_COG, "cogvideox15_5b", {"num_layers": 42, "patch_size_t": 2, "in_channels": 16}),
    Use(_COG, "cogvideox15_5b_i2v", {"num_layers": 42, "patch_size_t": 2, "in_channels": 32}),
    Use("ConsisIDTransformer3DModel", "cogvideox_5b", {"num_layers": 42}),
    Use(
        "CosmosTransformer3DModel",
        "cosmos1",
        {"num_layers": 28, "num_attention_heads": 32, "extra_pos_embed_type": "learnable"},
    ),
    Use("LuminaNextDiT2DModel", "lumina_next", {"hidden_size": 2304}),
    Use(
        "Lumina2Transformer2DModel",
        "lumina2_v2",
        {"hidden_size": 2304},
        rules=("vllm_omni", "official", "sglang"),
    ),
    Use("Lumina2Transformer2DModel", "lumina2_comfyui", {"hidden_size": 2304}, rules=("comfyui",)),
    Use("HiDreamImageTransformer2DModel", "hidream_full", _HIDREAM),
    Use("HiDreamImageTransformer2DModel", "hidream_dev", _HIDREAM),
    Use("HiDreamImageTransformer2DModel", "hidream_fast", _HIDREAM),
    Use(_WAN, "wan21_t2v_1_3b", {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}),
    Use(_WAN, "wan21_t2v_14b", _WAN_14B),
    Use(_WAN, "wan21_t2v_14b", _WAN_14B, experts=2, donor="Wan2.1-T2V-14B"),
    Use(_WAN, "wan21_i2v_480p", _WAN_I2V),
    Use(_WAN, "wan21_i2v_480p_ret", _WAN_I2V),
    Use(_WAN, "wan21_i2v_720p", _WAN_I2V),
    Use(_WAN, "wan21_i2v_720p_ret", _WAN_I2V),
    Use(_WAN, "wan22_ti2v_5b", {"num_layers": 30, "num_attention_heads": 24, "in_channels": 48}),
    Use("QwenImageTransformer2DModel", "qwen_image", {"num_layers": 60}),
    Use("ZImageTransformer2DModel", "qwen_image", {"dim": 3840}, rules=_NEAR, donor="Qwen-Image"),
    Use("ZImageTransformer2DModel", "hunyuan_video", {"dim": 3840}, rules=("sglang",), donor="HunyuanVideo"),
    Use(
        "Flux2Transformer2DModel",
        "qwen_image",
        {"num_layers": 8, "num_single_layers": 48},
        donor="Qwen-Image",
    ),
    Use(
        "Flux2Transformer2DModel", "flux_dev", {"num_layers": 5, "num_single_layers": 20}, donor="FLUX.1-dev"
    ),
    Use(
        "Flux2Transformer2DModel", "flux_dev", {"num_layers": 8, "num_single_layers": 24}, donor="FLUX.1-dev"
    ),
    Use("StableAudioDiTModel", "stable_audio", {"num_layers": 24, "num_attention_heads": 24}),
    Use("LongCatImageTransformer2DModel", "longcat_image", {"joint_attention_dim": 3584}),
    Use("MiniMaxH3Transformer3DModel", "minimax_h3", {"num_layers": 50}),
    Use("MiniMaxH3DiTModel", "minimax_h3", {"num_layers": 50}),
)


def choose(transformer: str, model: nn.Module, pipeline: str, experts: int, rule: str) -> Use:
    """The published set for ``model``, whose card is of the class ``transformer``.

    ``pipeline`` is the class of the pipeline and ``experts`` the number of its transformers.

    Raises:
        ConfigError: if there is none, or if several fit that the configuration does not tell apart.
    """
    of_class = [use for use in USES if use.transformer == transformer]
    fitting = [
        use
        for use in of_class
        if _has(model, use.config)
        and (not use.rules or rule in use.rules)
        and (not use.pipelines or pipeline in use.pipelines)
        and use.experts == experts
    ]
    special = [use for use in fitting if use.pipelines] or fitting
    if len({use.name for use in special}) == 1:
        return special[0]
    if special:
        raise ConfigError(
            f"several published sets of coefficients fit this {transformer}, and its configuration does not tell "
            f"which model it is: {_listed(special)}. Name one, as coefficients: {special[0].name}."
        )
    if of_class:
        why = (
            f"no published set of coefficients is for this {transformer} ({_own(model, of_class)}). There are "
            f"{_listed(of_class)}"
        )
    else:
        why = f"no coefficients were published for {transformer}"
    raise ConfigError(f"{why}. {HOW}")


HOW = (
    "Give your own, coefficients: [c4, c3, c2, c1, c0], highest power first; or name a published set, coefficients: "
    "flux_dev; or compare the plain difference, coefficients: identity. `dit-cache calibrate` fits your own, "
    "coefficients: FILE. docs/tea_cache.md says more."
)


def _has(model: nn.Module, wanted: Mapping[str, object]) -> bool:
    facts = {key: _fact(model, key) for key in wanted}
    known = {key: value for key, value in facts.items() if value is not UNKNOWN}
    return bool(known or not wanted) and all(wanted[key] == value for key, value in known.items())


def _own(model: nn.Module, uses: Iterable[Use]) -> str:
    """What the configuration says where the published models are told by it."""
    keys = dict.fromkeys(key for use in uses for key in use.config)
    return ", ".join(f"{key} {value}" for key in keys if (value := _fact(model, key)) is not UNKNOWN)


UNKNOWN = object()
_LISTS = {
    "num_layers": ("transformer_blocks", "blocks"),
    "num_single_layers": ("single_transformer_blocks",),
}


def _fact(model: nn.Module, key: str) -> object:
    """What a model's configuration says; ``UNKNOWN`` where it has none and the model itself does not tell.

    The models of vLLM-Omni keep no whole configuration: there the number of blocks is counted, and what is kept on the
    model is taken.
    """
    config = getattr(model, "config", None)
    if hasattr(config, key) or hasattr(model, "register_to_config"):
        return getattr(config, key, None)
    for path in _LISTS.get(key, ()):
        blocks = getattr(model, path, None)
        if isinstance(blocks, nn.ModuleList):
            return len(blocks)
    if key == "joint_attention_dim":
        return getattr(getattr(model, "context_embedder", None), "in_features", UNKNOWN)
    return getattr(model, key, UNKNOWN)


def _listed(uses: Iterable[Use]) -> str:
    names = dict.fromkeys(use.name for use in uses)
    return ", ".join(f"{name} ({PUBLISHED[name].model})" for name in names)
