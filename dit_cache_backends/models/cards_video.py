"""Cards of further video and audio transformers of diffusers 0.42.1; see ``cards.py``.

Left alone in all of them: blocks that see the text only (refiners, text towers), the face adapters of WanAnimate, which
run between its blocks, and RFD4-Proteina, whose pairs are made from what each of its blocks gives.
"""

from typing import Any

from dit_cache_backends.models.card import BlockList, Card, Stack, stack
from dit_cache_backends.models.rows import E, H, X, joint, single

SINGLE = "single_transformer_blocks"


def _motif(transformer: Any) -> tuple[Stack, ...]:
    """MotifVideo: the last blocks may be a decoder, which begins with the latents anew and looks at the rest."""
    decoder = transformer.num_decoder_layers
    encoder = len(transformer.single_transformer_blocks) - decoder
    both, gives = (H, E), (H, E)
    first = stack(joint("transformer_blocks", gives), BlockList(SINGLE, both, gives, part=(0, encoder)))
    return (first, stack(BlockList(SINGLE, both, gives, part=(encoder, None)))) if decoder else (first,)


VIDEO: tuple[Card, ...] = (
    Card("AceStepTransformer1DModel", (stack(single("layers")),)),
    Card("AllegroTransformer3DModel", (stack(single("transformer_blocks")),)),
    Card(
        "AnyFlowFARTransformer3DModel",
        (stack(single("blocks")),),
        must_run=(("kv_cache_flag.is_cache_step", (True,)),),
    ),
    Card("AnyFlowTransformer3DModel", (stack(single("blocks")),)),
    Card("ChronoEditTransformer3DModel", (stack(single("blocks")),)),
    Card(
        "Cosmos3OmniTransformer",
        (stack(BlockList("layers", takes=("gen_seq", "und_seq"), gives=("und_seq", "gen_seq"))),),
    ),
    Card("EasyAnimateTransformer3DModel", (stack(joint("transformer_blocks", (H, E))),)),
    Card("HeliosTransformer3DModel", (stack(single("blocks")),)),
    Card("HunyuanVideo15Transformer3DModel", (stack(joint("transformer_blocks", (H, E))),)),
    Card(
        "HunyuanVideoFramepackTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E))), stack(joint(SINGLE, (H, E)))),
    ),
    Card("Kandinsky5Transformer3DModel", (stack(single("visual_transformer_blocks", "visual_embed")),)),
    Card("Kandinsky6SRTransformer3DModel", (stack(single("visual_transformer_blocks")),)),
    Card(
        "Kandinsky6Transformer3DModel",
        (stack(BlockList("visual_transformer_blocks", takes=("vis", "aud"), gives=("vis", "aud"))),),
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
    ),
    Card("LongCatAudioDiTTransformer", (stack(single("blocks")),)),
    Card("MiniMaxMusic3Transformer1DModel", (stack(single("transformer_blocks")),)),
    Card(
        "MotifVideoTransformer3DModel",
        (stack(joint("transformer_blocks", (H, E)), joint(SINGLE, (H, E))),),
        arrange=_motif,
    ),
    Card(
        "SanaWMLTX2RefinerTransformer3DModel",
        (stack(single("transformer_blocks")),),
        must_run=(("kv_cache_mode", ("capture_pre_rope", "inject_and_capture_post_rope")),),
    ),
    Card("SanaWMTransformer3DModel", (stack(single("blocks", X)),)),
    Card("SanaVideoTransformer3DModel", (stack(single("transformer_blocks")),)),
    Card("SkyReelsV2Transformer3DModel", (stack(single("blocks")),)),
    Card("StableAudio3DiTModel", (stack(single("transformer_blocks")),)),
    Card("TransformerTemporalModel", (stack(single("transformer_blocks")),)),
    Card(
        "WanAnimate2Transformer3DModel",
        (stack(single("blocks")),),
        must_run=(("kv_cache_mode", ("extract",)),),
    ),
    Card("WanAnimateTransformer3DModel", (stack(single("blocks")),)),
    Card(
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
    ),
)
