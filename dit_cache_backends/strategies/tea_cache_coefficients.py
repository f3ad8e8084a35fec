"""The published TeaCache coefficients by name, with where they come from.

No source tells the range of differences that a set was fitted on, and only one how well it fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from dit_cache_backends.strategies.tea_cache_curves import Curve

TEACACHE = "TeaCache (github.com/ali-vilab/TeaCache)"
COMFYUI = "ComfyUI-TeaCache (github.com/welltop-cn/ComfyUI-TeaCache)"
VLLM_OMNI = "vLLM-Omni 0.30.0"
LIGHTX2V = "LightX2V (github.com/ModelTC/LightX2V)"


@dataclass(frozen=True, slots=True)
class CoefficientSet:
    """A polynomial from the relative difference of the signal to that of the model's output."""

    values: tuple[float, ...]
    """Highest power first."""
    model: str
    """The model it was fitted on."""
    source: str
    thresholds: tuple[tuple[float, str], ...] = ()
    """Published thresholds, the most careful first, each with the speed-up its source gives for it."""
    signal: str = ""
    """Which of the model's signals it was fitted on; empty for the first of its card."""
    x_range: tuple[float, float] | None = None
    """The differences it was fitted on, where known."""
    r2: float | None = None
    """How well it fits, where known (1 is perfect)."""
    window: tuple[int | float, int | float] | None = None
    """``start_step`` and ``end_step`` of its source, where they differ from those of the rule ``official``."""
    note: str = ""
    curve: Curve | None = None
    """What is evaluated, where that is not the polynomial of ``values``."""
    measured: bool = False
    """Fitted by ``dit-cache calibrate``, so that thresholds are the relative change of the output they allow."""


def _t(*pairs: tuple[float, str]) -> tuple[tuple[float, str], ...]:
    return pairs


_WAN_RET: tuple[int | float, int | float] = (5, 1.0)

PUBLISHED: dict[str, CoefficientSet] = {
    "flux_dev": CoefficientSet(
        (4.98651651e2, -2.83781631e2, 5.58554382e1, -3.82021401, 2.64230861e-1),
        "FLUX.1-dev",
        TEACACHE,
        _t((0.25, "1.5x"), (0.4, "1.8x"), (0.6, "2.0x"), (0.8, "2.25x")),
        note="also published for TangoFlux: 0.25 1.7x, 0.4 2.1x",
    ),
    "flux_kontext": CoefficientSet(
        (-1.04655119e3, 3.12563399e2, -1.69500694e1, 4.10995971e-1, 3.74537863e-2),
        "FLUX.1-Kontext-dev",
        COMFYUI,
    ),
    "hunyuan_video": CoefficientSet(
        (7.33226126e2, -4.01131952e2, 6.75869174e1, -3.14987800, 9.61237896e-2),
        "HunyuanVideo",
        TEACACHE,
        _t((0.1, "1.6x"), (0.15, "2.1x")),
    ),
    "ltx_video": CoefficientSet(
        (2.14700694e1, -1.28016453e1, 2.31279151, 7.92487521e-1, 9.69274326e-3),
        "LTX-Video 0.9.1",
        TEACACHE,
        _t((0.03, "1.6x"), (0.05, "2.1x")),
    ),
    "mochi": CoefficientSet(
        (-3.51241319e3, 8.11675948e2, -6.09400215e1, 2.42429681, 3.05291719e-3),
        "Mochi 1",
        TEACACHE,
        _t((0.06, "1.5x"), (0.09, "2.1x")),
    ),
    "cogvideox_2b": CoefficientSet(
        (-3.10658903e1, 2.54732368e1, -5.92380459, 1.75769064, -3.61568434e-3),
        "CogVideoX-2b",
        TEACACHE,
        _t((0.1, ""), (0.2, "")),
    ),
    "cogvideox_5b": CoefficientSet(
        (-1.53880483e3, 8.43202495e2, -1.34363087e2, 7.97131516, -5.23162339e-2),
        "CogVideoX-5b, CogVideoX-5b-I2V, ConsisID",
        TEACACHE,
        _t((0.1, "1.6x"), (0.15, "2.1x"), (0.2, "2.7x")),
        note="thresholds measured on ConsisID",
    ),
    "cogvideox15_5b": CoefficientSet(
        (2.50210439e2, -1.65061612e2, 3.57804877e1, -7.81551492e-1, 3.58559703e-2),
        "CogVideoX1.5-5B",
        TEACACHE,
        _t((0.1, "1.3x"), (0.2, "1.8x"), (0.3, "2.1x")),
    ),
    "cogvideox15_5b_i2v": CoefficientSet(
        (1.22842302e2, -1.04088754e2, 2.62981677e1, -3.06009921e-1, 3.71213220e-2),
        "CogVideoX1.5-5B-I2V",
        TEACACHE,
        _t((0.1, "1.5x"), (0.2, "2.2x"), (0.3, "2.7x")),
    ),
    "cosmos1": CoefficientSet(
        (2.71156237e2, -9.19775607e1, 2.24437250, 2.08355751, 1.41776330e-1),
        "Cosmos 1.0 (text and image to video)",
        TEACACHE,
        _t((0.3, "1.4x"), (0.4, "2.0x")),
    ),
    "open_sora_1_2": CoefficientSet(
        (2.17546007e2, -1.18329252e2, 2.68662585e1, -4.59364272e-2, 4.84426240e-2),
        "Open-Sora 1.2",
        TEACACHE,
        _t((0.1, ""), (0.2, "")),
    ),
    "open_sora_plan": CoefficientSet(
        (2.05943668e5, -1.48759286e4, 3.06085986e2, 1.31418080, 2.39658469e-3),
        "Open-Sora-Plan",
        TEACACHE,
        _t((0.1, ""), (0.2, "")),
    ),
    "latte": CoefficientSet(
        (-2.46434137e3, 3.08044764e2, 8.07447667e1, -4.11385132, 1.11001402e-1),
        "Latte-1",
        TEACACHE,
        _t((0.1, ""), (0.2, "")),
    ),
    "lumina_next": CoefficientSet(
        (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
        "Lumina-T2X (Lumina-Next)",
        TEACACHE,
        _t((0.2, "1.5x"), (0.3, "1.9x"), (0.4, "2.4x"), (0.5, "2.8x")),
        note="was also published for Lumina-Image 2.0: 0.2 1.25x, 0.3 1.56x, 0.4 2.08x, 0.5 2.5x",
    ),
    "lumina2_v2": CoefficientSet(
        (
            225.7042019806413,
            -608.8453716535591,
            304.1869942338369,
            124.21267720116742,
            -1.4089066892956552,
        ),
        "Lumina-Image 2.0",
        f"{TEACACHE}, #76",
        _t((0.2, "1.5x"), (0.3, "1.6x"), (0.5, "1.8x"), (1.1, "2.1x")),
    ),
    "lumina2_comfyui": CoefficientSet(
        (-8.74643948e2, 4.66059906e2, -7.51559762e1, 5.32836175, -3.27258296e-2),
        "Lumina-Image 2.0",
        COMFYUI,
    ),
    "hidream_full": CoefficientSet(
        (-3.13605009e4, -7.12425503e2, 4.91363285e1, 8.26515490, 1.08053901e-1),
        "HiDream-I1-Full",
        TEACACHE,
        _t((0.17, "1.5x"), (0.25, "1.7x"), (0.3, "2.0x"), (0.45, "2.6x")),
        window=(0.1, 1.0),
    ),
    "hidream_dev": CoefficientSet(
        (1.39997273, -4.30130469, 5.01534416, -2.20504164, 0.93942874),
        "HiDream-I1-Dev",
        COMFYUI,
        signal="tokens",
    ),
    "hidream_fast": CoefficientSet(
        (2.26509623, -6.88864563, 7.61123826, -3.10849353, 0.99927602),
        "HiDream-I1-Fast",
        COMFYUI,
        signal="tokens",
    ),
    "wan21_t2v_1_3b": CoefficientSet(
        (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1),
        "Wan2.1-T2V-1.3B",
        TEACACHE,
        _t((0.05, "1.5x"), (0.07, "1.6x"), (0.08, "2.0x")),
    ),
    "wan21_t2v_1_3b_ret": CoefficientSet(
        (-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
        "Wan2.1-T2V-1.3B",
        TEACACHE,
        _t((0.05, "1.6x"), (0.1, "2.4x")),
        signal="time_projection",
        window=_WAN_RET,
    ),
    "wan21_t2v_14b": CoefficientSet(
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        "Wan2.1-T2V-14B",
        TEACACHE,
        _t((0.14, "1.4x"), (0.15, "1.8x"), (0.2, "2.0x")),
    ),
    "wan21_t2v_14b_ret": CoefficientSet(
        (-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
        "Wan2.1-T2V-14B",
        TEACACHE,
        _t((0.1, "2.0x"), (0.2, "3.2x")),
        signal="time_projection",
        window=_WAN_RET,
    ),
    "wan21_i2v_480p": CoefficientSet(
        (-3.02331670e2, 2.23948934e2, -5.25463970e1, 5.87348440, -2.01973289e-1),
        "Wan2.1-I2V-14B-480P",
        TEACACHE,
        _t((0.13, "1.6x"), (0.19, "2.0x"), (0.26, "2.5x")),
    ),
    "wan21_i2v_480p_ret": CoefficientSet(
        (2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1),
        "Wan2.1-I2V-14B-480P",
        TEACACHE,
        _t((0.2, "1.8x"), (0.3, "2.3x")),
        signal="time_projection",
        window=_WAN_RET,
    ),
    "wan21_i2v_720p": CoefficientSet(
        (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        "Wan2.1-I2V-14B-720P",
        TEACACHE,
        _t((0.18, "1.7x"), (0.2, "1.9x"), (0.3, "2.4x")),
    ),
    "wan21_i2v_720p_ret": CoefficientSet(
        (8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2),
        "Wan2.1-I2V-14B-720P",
        TEACACHE,
        _t((0.2, "2.1x"), (0.3, "2.7x")),
        signal="time_projection",
        window=_WAN_RET,
    ),
    "wan22_ti2v_5b": CoefficientSet(
        (1.57472669e5, -1.15702395e5, 3.10761669e4, -3.83116651e3, 2.21608777e2, -4.81179567),
        "Wan2.2-TI2V-5B",
        LIGHTX2V,
        _t((0.26, "")),
        signal="time_projection",
        note="fifth degree; which time embedding it was fitted on is not said, taken as for the Wan2.1 sets beside it",
    ),
    "qwen_image": CoefficientSet(
        (-450.0, 280.0, -45.0, 3.2, -0.02),
        "Qwen-Image",
        VLLM_OMNI,
        _t((0.2, "")),
        note="round numbers: probably set by hand",
    ),
    "bagel": CoefficientSet(
        (1.33313129e6, -1.68644226e5, 7.95050740e3, -1.63747873e2, 1.26352397),
        "BAGEL",
        VLLM_OMNI,
        _t((0.2, "")),
    ),
    "sensenova_u1": CoefficientSet(
        (9.07281930e4, -2.17699186e4, 1.83940990e3, -6.30339273e1, 7.61309272e-1),
        "SenseNova-U1",
        VLLM_OMNI,
        _t((0.2, "")),
    ),
    "stable_audio": CoefficientSet(
        (
            121.77490545701518,
            -153.7449426160371,
            68.05368574596551,
            -12.281286412689623,
            1.0733905006198015,
        ),
        "Stable Audio Open 1.0",
        VLLM_OMNI,
        _t((0.2, "")),
    ),
    "hunyuan_image3": CoefficientSet(
        (1.04117826e2, -1.26848482e2, 5.68168652e1, -1.04182570e1, 6.78098549e-1),
        "HunyuanImage-3.0",
        VLLM_OMNI,
        _t((0.2, "")),
    ),
    "longcat_image": CoefficientSet(
        (652.5980, -424.1615, 84.5526, -4.5923, 0.1694),
        "LongCat-Image",
        VLLM_OMNI,
        _t((0.2, "")),
    ),
    "minimax_h3": CoefficientSet(
        (
            2283.704065852778,
            -777.5977277886368,
            94.0841474135949,
            -4.232669906169421,
            0.2173782527946167,
        ),
        "MiniMax-H3 (first and last frame to video and audio)",
        VLLM_OMNI,
        _t((0.17, "")),
        r2=0.095,
    ),
}

IDENTITY = CoefficientSet((1.0, 0.0), "any", "none: the difference itself")
