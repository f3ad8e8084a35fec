"""The cards, a row for each transformer class, read from diffusers 0.42.1 and tried on tiny models."""

from dit_cache_backends.models import signals
from dit_cache_backends.models.card import Card, stack
from dit_cache_backends.models.cards_image import IMAGE
from dit_cache_backends.models.cards_sglang import SGLANG
from dit_cache_backends.models.cards_video import VIDEO
from dit_cache_backends.models.cards_vllm_omni import VLLM_OMNI
from dit_cache_backends.models.rows import E, H, X, joint, modulated, single, timed
from dit_cache_backends.models.signals import Signal, TimeSignal

CARDS: tuple[Card, ...] = (
    Card(
        "ChromaTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H))), stack(single("single_transformer_blocks"))),
        signals=modulated(signals.chroma),
    ),
    Card(
        "CogVideoXTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=(timed(signals.cogvideox_time),),
    ),
    Card(
        "ConsisIDTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=(timed(signals.cogvideox_time),),
    ),
    Card(
        "CosmosTransformer3DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.cosmos),
    ),
    Card(
        "DiTTransformer2DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.class_norm),
    ),
    Card(
        "Flux2Transformer2DModel",
        (stack(joint("transformer_blocks", (E, H))), stack(single("single_transformer_blocks"))),
        signals=modulated(signals.flux2),
    ),
    Card(
        "FluxTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H)), joint("single_transformer_blocks", (E, H))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "GlmImageTransformer2DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        must_run=(("kv_caches.caches.0.mode", ("write",)),),
        signals=modulated(signals.joint_norm),
    ),
    Card(
        "HiDreamImageTransformer2DModel",
        (stack(joint("double_stream_blocks", (H, E))), stack(single("single_stream_blocks"))),
        signals=(timed(signals.hidream_time, "timesteps"), Signal("tokens", signals.tokens)),
    ),
    Card(
        "HunyuanVideoTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))), stack(joint("single_transformer_blocks", (H, E)))),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "LTXVideoTransformer3DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.ltx_video),
    ),
    Card(
        "LongCatImageTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H)), joint("single_transformer_blocks", (E, H))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "Lumina2Transformer2DModel",
        (stack(single("layers")),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "LuminaNextDiT2DModel",
        (stack(single("layers")),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "MiniMaxH3Transformer3DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.minimax_h3),
    ),
    Card(
        "MochiTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "PixArtTransformer2DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.shared_modulation),
    ),
    Card(
        "QwenImageTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H))),),
        signals=modulated(signals.qwen_image),
    ),
    Card(
        "SD3Transformer2DModel",
        (stack(joint("transformer_blocks", (E, H))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "StableAudioDiTModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.plain_norm),
    ),
    Card(
        "WanTransformer3DModel",
        (stack(single("blocks")),),
        signals=(
            timed(signals.wan_time),
            TimeSignal("time_projection", "timestep", signals.wan_time_projection),
        ),
    ),
    Card(
        "ZImageTransformer2DModel",
        (stack(single("layers", X)),),
        signals=modulated(signals.z_image),
    ),
    *IMAGE,
    *VIDEO,
    *SGLANG,
    *VLLM_OMNI,
)
