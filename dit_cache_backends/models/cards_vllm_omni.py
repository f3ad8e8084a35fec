"""Cards of vLLM-Omni 0.30's own transformers, tried on tiny models of its classes by ``make test-vllm-omni``.

Left alone in all of them: blocks that see the text only (refiners, connectors), and those that refine the picture
before it meets the text. Classes without a card, and why: ``docs/vllm-omni.md``.
"""

from dataclasses import replace

from dit_cache_backends.models import signals, signals_image, signals_video, signals_vllm_omni
from dit_cache_backends.models.card import BlockList, Card, Stack, stack
from dit_cache_backends.models.cards_video import WAN_TIME
from dit_cache_backends.models.rows import E, H, X, joint, modulated, single, timed
from dit_cache_backends.models.signals import Signal, TimeSignal

DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"


def _card(
    transformer: str,
    *stacks: Stack,
    signals: tuple[Signal | TimeSignal, ...] = (),
    must_run: tuple[tuple[str, tuple[object, ...]], ...] = (),
) -> Card:
    return Card(transformer, stacks, library="vllm_omni", signals=signals, must_run=must_run)


_ADAPTIVE = modulated(signals.adaptive_norm)
_ONE_STACK = stack(joint(DOUBLE, (E, H)), joint(SINGLE, (E, H)))

VLLM_OMNI: tuple[Card, ...] = (
    # Its language model fills no store here: what the text gives is made once and kept on the transformer.
    _card("Cosmos3VFMTransformer", stack(single("gen_layers")), signals=modulated(signals_image.omnigen)),
    _card(
        "ErnieImageTransformer2DModel",
        stack(single("layers")),
        signals=modulated(signals_vllm_omni.ernie_image),
    ),
    # Its FluxKontextTransformer2DModel is a subclass; FLUX.2 and FLUX.2 Klein have classes of one name.
    _card("FluxTransformer2DModel", _ONE_STACK, signals=_ADAPTIVE),
    _card(
        "Flux2Transformer2DModel",
        stack(joint(DOUBLE, (E, H))),
        stack(single(SINGLE)),
        signals=modulated(signals_vllm_omni.flux2),
    ),
    _card(
        "GlmImageTransformer2DModel",
        stack(joint(DOUBLE, (H, E))),
        must_run=(("kv_cache.mode.value", ("write",)),),
        signals=modulated(signals.joint_norm),
    ),
    _card("HeliosTransformer3DModel", stack(single("blocks")), signals=modulated(signals_video.each_token)),
    _card(
        "HiDreamImageTransformer2DModel",
        stack(joint("double_stream_blocks", (H, E))),
        stack(single("single_stream_blocks")),
        signals=(timed(signals.hidream_time, "timesteps"), Signal("tokens", signals.tokens)),
    ),
    # The pipeline names the language model in it, which is told no time.
    _card(
        "HiDreamO1ImageTransformer",
        stack(single("model.language_model.layers")),
        signals=modulated(signals_image.omnigen),
    ),
    _card("HunyuanVideo15Transformer3DModel", stack(joint(DOUBLE, (H, E))), signals=_ADAPTIVE),
    _card("Krea2Transformer2DModel", stack(single(DOUBLE)), signals=modulated(signals_image.krea2)),
    _card(
        "LTX2VideoTransformer3DModel",
        stack(BlockList(DOUBLE, takes=(H, "audio_hidden_states"), gives=(H, "audio_hidden_states"))),
        signals=modulated(signals.ltx_video),
    ),
    _card(
        "LingBotVideoTransformer3DModel",
        stack(single("blocks", X)),
        signals=modulated(signals_vllm_omni.lingbot_video),
    ),
    _card("LongCatImageTransformer2DModel", _ONE_STACK, signals=_ADAPTIVE),
    _card("MiniMaxH3DiTModel", stack(single("blocks", X)), signals=modulated(signals_vllm_omni.minimax_h3)),
    _card(
        "OmniGen2Transformer2DModel", stack(single("layers")), signals=modulated(signals_vllm_omni.omnigen2)
    ),
    _card("OvisImageTransformer2DModel", _ONE_STACK, signals=_ADAPTIVE),
    _card(
        "QwenImageTransformer2DModel",
        stack(joint(DOUBLE, (E, H))),
        signals=modulated(signals_vllm_omni.qwen_image),
    ),
    # The text comes to its first block as a pair (tensor, None), which that block takes apart; so it always runs.
    _card("SD3Transformer2DModel", stack(replace(joint(DOUBLE, (E, H)), part=(1, None))), signals=_ADAPTIVE),
    _card("SanaVideoTransformer3DModel", stack(single(DOUBLE)), signals=modulated(signals_video.sana_video)),
    _card("StableAudioDiTModel", stack(single(DOUBLE)), signals=modulated(signals.plain_norm)),
    _card(
        # The hints are kept, one for each block of the first list: as much memory as that many residuals.
        "WanVACETransformer3DModel",
        stack(
            BlockList(
                "vace_blocks", takes=("control_hidden_states",), gives=("=hint", "control_hidden_states")
            )
        ),
        stack(single("blocks")),
        signals=WAN_TIME,
    ),
    _card("WanTransformer3DModel", stack(single("blocks")), signals=WAN_TIME),
    # Its Ming-Image classes are subclasses.
    _card(
        "ZImageTransformer2DModel", stack(single("layers", X)), signals=modulated(signals_vllm_omni.z_image)
    ),
)
