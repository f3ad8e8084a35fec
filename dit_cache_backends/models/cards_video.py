"""Cards of further video and audio transformers of diffusers 0.42.1; see ``cards.py``.

Left alone in all of them: blocks that see the text only (refiners, text towers), and the face adapters of WanAnimate,
which run between its blocks. Without a card: RFD4-Proteina, whose pairs are made from what each of its blocks gives and
go on into the next cycle; MiniMax-Music 3's depth decoder, which makes tokens one by one; and control nets, whose every
block's output is used, not only the last one's: they run at each step beside a cached transformer.
"""

from dataclasses import replace
from typing import Any

from dit_cache_backends.models import signals, signals_video
from dit_cache_backends.models.card import BlockList, Card, Stack, stack
from dit_cache_backends.models.rows import E, H, X, joint, modulated, single, timed
from dit_cache_backends.models.signals import TimeSignal

SINGLE = "single_transformer_blocks"
WAN_TIME = (
    timed(signals.wan_time),
    TimeSignal("time_projection", "timestep", signals.wan_time_projection),
)


def _motif(transformer: Any) -> tuple[Stack, ...]:
    """MotifVideo: the last blocks may be a decoder, which begins with the latents anew and looks at the rest."""
    decoder = transformer.num_decoder_layers
    encoder = len(transformer.single_transformer_blocks) - decoder
    singles = joint(SINGLE, (H, E))
    first = stack(joint("transformer_blocks", (H, E)), replace(singles, part=(0, encoder)))
    return (first, stack(replace(singles, part=(encoder, None)))) if decoder else (first,)


VIDEO: tuple[Card, ...] = (
    Card(
        "AceStepTransformer1DModel",
        (stack(single("layers")),),
        signals=modulated(signals_video.ace_step),
    ),
    Card(
        "AllegroTransformer3DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals_video.allegro),
    ),
    Card(
        "AnyFlowFARTransformer3DModel",
        (stack(single("blocks")),),
        must_run=(("kv_cache_flag.is_cache_step", (True,)),),
        signals=modulated(signals_video.each_token),
    ),
    Card(
        "AnyFlowTransformer3DModel",
        (stack(single("blocks")),),
        signals=modulated(signals_video.each_token),
    ),
    Card(
        "ChronoEditTransformer3DModel",
        (stack(single("blocks")),),
        signals=WAN_TIME,
    ),
    Card(
        "Cosmos3OmniTransformer",
        (stack(BlockList("layers", takes=("gen_seq", "und_seq"), gives=("und_seq", "gen_seq"))),),
        signals=modulated(signals_video.cosmos3),
    ),
    Card(
        "EasyAnimateTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=modulated(signals.joint_norm),
    ),
    Card(
        "HeliosTransformer3DModel",
        (stack(single("blocks")),),
        signals=modulated(signals_video.each_token),
    ),
    Card(
        "HunyuanVideo15Transformer3DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "HunyuanVideoFramepackTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))), stack(joint(SINGLE, (H, E)))),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "Kandinsky5Transformer3DModel",
        (stack(single("visual_transformer_blocks", "visual_embed")),),
        signals=modulated(signals_video.kandinsky5),
    ),
    Card(
        "Kandinsky6SRTransformer3DModel",
        (stack(single("visual_transformer_blocks")),),
        signals=modulated(signals_video.kandinsky6_sr),
    ),
    Card(
        "Kandinsky6Transformer3DModel",
        (stack(BlockList("visual_transformer_blocks", takes=("vis", "aud"), gives=("vis", "aud"))),),
        signals=modulated(signals_video.kandinsky6),
    ),
    Card(
        "LTX2VideoTransformer3DModel",
        (
            stack(
                BlockList(
                    "transformer_blocks", takes=(H, "audio_hidden_states"), gives=(H, "audio_hidden_states")
                )
            ),
        ),
        signals=modulated(signals.ltx_video),
    ),
    Card(
        "LongCatAudioDiTTransformer",
        (stack(single("blocks")),),
        signals=modulated(signals_video.longcat_audio),
    ),
    Card(
        "MiniMaxMusic3Transformer1DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.plain_norm),
    ),
    Card(
        "MotifVideoTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E)), joint(SINGLE, (H, E))),),
        arrange=_motif,
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "SanaWMLTX2RefinerTransformer3DModel",
        (stack(single("transformer_blocks")),),
        must_run=(("kv_cache_mode", ("capture_pre_rope", "inject_and_capture_post_rope")),),
        signals=modulated(signals.ltx_video),
    ),
    Card(
        "SanaWMTransformer3DModel",
        (stack(single("blocks", X)),),
        signals=modulated(signals_video.sana_wm),
    ),
    Card(
        "SanaVideoTransformer3DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals_video.sana_video),
    ),
    Card(
        "SkyReelsV2Transformer3DModel",
        (stack(single("blocks")),),
        signals=modulated(signals_video.token_last),
    ),
    Card(
        "StableAudio3DiTModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals_video.stable_audio3),
    ),
    Card(
        "T5FilmDecoder",
        (stack(BlockList("decoders", takes=(H,), gives=(H,))),),
        signals=modulated(signals_video.t5_film),
    ),
    Card(
        "TransformerTemporalModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.plain_norm),
    ),
    Card(
        "WanAnimate2Transformer3DModel",
        (stack(single("blocks")),),
        must_run=(("kv_cache_mode", ("extract",)),),
        signals=modulated(signals_video.wan_animate_2),
    ),
    Card(
        "WanAnimateTransformer3DModel",
        (stack(single("blocks")),),
        signals=WAN_TIME,
    ),
    Card(
        # The hints are kept, one for each block of the first list: as much memory as that many residuals.
        "WanVACETransformer3DModel",
        (
            stack(
                BlockList(
                    "vace_blocks",
                    takes=("control_hidden_states",),
                    gives=("=hint", "control_hidden_states"),
                )
            ),
            stack(single("blocks")),
        ),
        signals=WAN_TIME,
    ),
)
