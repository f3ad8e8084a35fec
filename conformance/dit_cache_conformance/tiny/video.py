"""The tiny transformers of video and audio classes: a row for each, with how it is made, called, and what is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import audio, wan_like
from . import joint_models as joint
from . import video_models as models
from .spec import TinyTransformer
from .wan_like import DEPTH, wan_call

_DEPTH_OF_ONE = {"transformer_blocks": DEPTH}
_WAN = {"blocks": DEPTH}
_TWO_STACKS = {"transformer_blocks": 3, "single_transformer_blocks": 5}

KV_ARGUMENTS: dict[str, Callable[[Any, str | None], dict[str, Any]]] = {
    "anyflow_far": wan_like.anyflow_far_kv,
    "sana_wm_refiner": joint.sana_wm_refiner_kv,
    "wan_animate_2": wan_like.wan_animate_2_kv,
}

VIDEO_SPECS: tuple[TinyTransformer, ...] = (
    TinyTransformer("ace_step", audio.ace_step, audio.ace_step_call, {"layers": DEPTH}),
    TinyTransformer("allegro", models.allegro, models.allegro_call, _DEPTH_OF_ONE),
    TinyTransformer("anyflow", wan_like.anyflow, wan_like.anyflow_call, _WAN),
    TinyTransformer(
        "anyflow_far",
        wan_like.anyflow_far,
        wan_like.anyflow_far_call,
        _WAN,
        kv_cache=wan_like.anyflow_far_cache,
    ),
    TinyTransformer("chronoedit", wan_like.chronoedit, wan_call, _WAN),
    TinyTransformer("cosmos3", joint.cosmos3, joint.cosmos3_call, {"layers": DEPTH}),
    TinyTransformer("easyanimate", models.easyanimate, wan_call, _DEPTH_OF_ONE),
    TinyTransformer("framepack", models.framepack, models.framepack_call, _TWO_STACKS),
    TinyTransformer("helios", wan_like.helios, wan_like.helios_call, _WAN),
    TinyTransformer("hunyuan_video15", models.hunyuan_video15, models.hunyuan_video15_call, _DEPTH_OF_ONE),
    TinyTransformer(
        "kandinsky5", joint.kandinsky5, joint.kandinsky5_call, {"visual_transformer_blocks": DEPTH}
    ),
    TinyTransformer(
        "kandinsky6", joint.kandinsky6, joint.kandinsky6_call, {"visual_transformer_blocks": DEPTH}
    ),
    TinyTransformer(
        "kandinsky6_silent",
        joint.kandinsky6,
        joint.kandinsky6_silent_call,
        {"visual_transformer_blocks": DEPTH},
    ),
    TinyTransformer(
        "kandinsky6_sr", joint.kandinsky6_sr, joint.kandinsky6_sr_call, {"visual_transformer_blocks": 4}
    ),
    TinyTransformer("longcat_audio", audio.longcat_audio, audio.longcat_audio_call, _WAN),
    TinyTransformer("ltx2", joint.ltx2, joint.ltx2_call, _DEPTH_OF_ONE),
    TinyTransformer("minimax_music3", audio.minimax_music3, audio.minimax_music3_call, _DEPTH_OF_ONE),
    TinyTransformer("motif", models.motif, models.motif_call, {"transformer_blocks": 8}),
    TinyTransformer(
        "motif_decoder",
        lambda: models.motif(7, num_decoder_layers=3),
        models.motif_call,
        {"transformer_blocks": 7, "single_transformer_blocks": 3},
    ),
    TinyTransformer("sana_video", models.sana_video, models.sana_video_call, _DEPTH_OF_ONE),
    TinyTransformer("sana_wm", models.sana_wm, models.sana_wm_call, _WAN),
    TinyTransformer(
        "sana_wm_refiner",
        joint.sana_wm_refiner,
        joint.sana_wm_refiner_call,
        _DEPTH_OF_ONE,
        kv_cache=joint.sana_wm_refiner_cache,
    ),
    TinyTransformer("skyreels_v2", wan_like.skyreels_v2, wan_call, _WAN),
    TinyTransformer("stable_audio3", audio.stable_audio3, audio.stable_audio3_call, _DEPTH_OF_ONE),
    TinyTransformer("t5_film", audio.t5_film, audio.t5_film_call, {"decoders": DEPTH}, returns_tuple=False),
    TinyTransformer("temporal", audio.temporal, audio.temporal_call, _DEPTH_OF_ONE),
    TinyTransformer("wan_animate", wan_like.wan_animate, wan_like.wan_animate_call, _WAN),
    TinyTransformer(
        "wan_animate_2",
        wan_like.wan_animate_2,
        wan_like.wan_animate_2_call,
        _WAN,
        kv_cache=wan_like.wan_animate_2_cache,
    ),
    TinyTransformer(
        "wan_vace", wan_like.wan_vace, wan_like.wan_vace_call, {"vace_blocks": 4, "blocks": DEPTH}
    ),
)
