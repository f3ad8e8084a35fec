"""Cards of the transformers of SGLang-Diffusion 0.5.23, read from ``sglang.multimodal_gen.runtime.models.dits``.

They share names with those of diffusers, and are called in other ways. Left alone: the refiners of Z-Image and
HunyuanVideo. ``docs/sglang.md`` names the classes without a card.
"""

from dit_cache_backends.models import signals, signals_sglang, signals_video
from dit_cache_backends.models.card import BlockList, Card, stack
from dit_cache_backends.models.rows import E, H, X, joint, modulated, single, timed
from dit_cache_backends.models.signals import TimeSignal

SGLANG: tuple[Card, ...] = (
    Card(
        "AnimaTransformer3DModel",
        (stack(single("transformer_blocks")),),
        library="sglang",
        signals=modulated(signals_sglang.anima),
    ),
    Card(
        "ErnieImageTransformer2DModel",
        (stack(single("layers", X)),),
        library="sglang",
        signals=modulated(signals_sglang.ernie_image),
    ),
    Card(
        "Flux2Transformer2DModel",
        (stack(joint("transformer_blocks", (E, H))), stack(single("single_transformer_blocks"))),
        library="sglang",
        signals=modulated(signals_sglang.flux2),
    ),
    Card(
        "FluxTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H)), joint("single_transformer_blocks", (E, H))),),
        library="sglang",
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "GlmImageTransformer2DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        library="sglang",
        must_run=(("kv_caches_mode", ("write",)),),
        signals=modulated(signals.joint_norm),
    ),
    Card(
        # Between the lists the video and the text are joined, the video first.
        "HunyuanVideoTransformer3DModel",
        (
            stack(BlockList("double_blocks", takes=("img", "txt"), gives=("img", "txt"))),
            stack(single("single_blocks", X)),
        ),
        library="sglang",
        signals=modulated(signals_sglang.hunyuan_video),
    ),
    Card(
        "Ideogram4Transformer2DModel",
        (stack(single("layers", X)),),
        library="sglang",
        signals=modulated(signals_sglang.ideogram4),
    ),
    Card(
        "Krea2Transformer2DModel",
        (stack(single("transformer_blocks")),),
        library="sglang",
        signals=modulated(signals_sglang.krea2),
    ),
    Card(
        "LongCatImageTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H)), joint("single_transformer_blocks", (E, H))),),
        library="sglang",
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "QwenImageTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H))),),
        library="sglang",
        signals=modulated(signals_sglang.qwen_image),
    ),
    Card(
        "SD3Transformer2DModel",
        (stack(joint("transformer_blocks", (E, H))),),
        library="sglang",
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "SanaTransformer2DModel",
        (stack(single("transformer_blocks")),),
        library="sglang",
        signals=modulated(signals.shared_modulation),
    ),
    Card(
        "SanaVideoTransformer3DModel",
        (stack(single("transformer_blocks")),),
        library="sglang",
        signals=modulated(signals_video.sana_video),
    ),
    Card(
        "WanTransformer3DModel",
        (stack(single("blocks")),),
        library="sglang",
        signals=(
            timed(signals_sglang.wan_time),
            TimeSignal("time_projection", "timestep", signals_sglang.wan_time_projection),
        ),
    ),
    Card(
        "ZImageTransformer2DModel",
        (stack(single("layers", X)),),
        library="sglang",
        signals=modulated(signals_sglang.z_image),
    ),
)
