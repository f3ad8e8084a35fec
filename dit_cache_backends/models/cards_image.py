"""Cards of further image transformers of diffusers 0.42.1, and of Latte; see ``cards.py``.

Left alone in all of them: blocks that see the text only (refiners, ``txt_mode_blocks``, ``text_fusion``, ``perceiver``)
and the U-Net parts of UVit2D.
"""

import torch
from torch import Tensor

from dit_cache_backends.models import signals, signals_image
from dit_cache_backends.models.card import Card, stack
from dit_cache_backends.models.rows import E, H, X, joint, modulated, single


def _frames_or_patches(main: Tensor, shape: torch.Size) -> Tensor:
    """Latte: a frame's patches in each row, ``[batch * frames, patches, dim]``, or a patch's frames, or back."""
    return main.reshape(-1, shape[1], *main.shape[1:]).transpose(1, 2).flatten(0, 1)


IMAGE: tuple[Card, ...] = (
    Card(
        "AuraFlowTransformer2DModel",
        (stack(joint("joint_transformer_blocks", (E, H))), stack(single("single_transformer_blocks"))),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "BriaFibo2Transformer2DModel",
        (stack(single("layers", X)),),
        signals=modulated(signals.z_image),
    ),
    Card(
        # Half of each text token is another text layer's before every block, and text and image are joined for each
        # of the single blocks and parted behind it: what was added before is added again all the same.
        "BriaFiboTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H))), stack(single("single_transformer_blocks"))),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "BriaTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H)), joint("single_transformer_blocks", (E, H))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "CogView3PlusTransformer2DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=modulated(signals_image.cogview3),
    ),
    Card(
        "CogView4Transformer2DModel",
        (stack(joint("transformer_blocks", (H, E))),),
        signals=modulated(signals.joint_norm),
    ),
    Card("DreamLiteTransformer2DModel", (stack(single("transformer_blocks")),)),
    Card(
        "ErnieImageTransformer2DModel",
        (stack(single("layers", X)),),
        signals=modulated(signals_image.ernie_image),
    ),
    Card(
        "Flux3Transformer2DModel",
        (
            stack(single("mode_blocks.image")),
            stack(single("mode_blocks.image_cond")),  # called where there is a picture to go by
            stack(joint("single_transformer_blocks", (E, H))),
        ),
        signals=modulated(signals_image.flux3),
    ),
    Card(
        "HunyuanDiT2DModel",
        (stack(single("blocks"), long_skips=True),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "HunyuanImageTransformer2DModel",
        (stack(joint("transformer_blocks", (H, E)), joint("single_transformer_blocks", (H, E))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card(
        "Ideogram4Transformer2DModel",
        (stack(single("layers")),),
        signals=modulated(signals_image.ideogram4),
    ),
    Card(
        "JoyImageEditPlusTransformer3DModel",
        (stack(joint("double_blocks", (H, E))),),
        signals=modulated(signals_image.joyimage),
    ),
    Card(
        "JoyImageEditTransformer3DModel",
        (stack(joint("double_blocks", (H, E))),),
        signals=modulated(signals_image.joyimage),
    ),
    Card(
        "Krea2Transformer2DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals_image.krea2),
    ),
    Card(
        "LatteTransformer3DModel",
        (
            stack(
                single("transformer_blocks"),
                single("temporal_transformer_blocks"),
                alternate=_frames_or_patches,
            ),
        ),
        signals=modulated(signals.shared_modulation),
    ),
    Card(
        "NucleusMoEImageTransformer2DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals_image.nucleus_moe),
    ),
    Card("OmniGenTransformer2DModel", (stack(single("layers")),), signals=modulated(signals_image.omnigen)),
    Card(
        "OvisImageTransformer2DModel",
        (stack(joint("transformer_blocks", (E, H)), joint("single_transformer_blocks", (E, H))),),
        signals=modulated(signals.adaptive_norm),
    ),
    Card("PRXTransformer2DModel", (stack(single("blocks")),), signals=modulated(signals_image.prx)),
    Card("PriorTransformer", (stack(single("transformer_blocks")),), signals=modulated(signals.plain_norm)),
    Card(
        "QwenImage21Transformer2DModel",
        (stack(single("transformer_blocks")),),
        must_run=(("kv_cache_mode", ("extract",)),),
        signals=modulated(signals_image.qwen_image21),
    ),
    Card(
        "SanaTransformer2DModel",
        (stack(single("transformer_blocks")),),
        signals=modulated(signals.shared_modulation),
    ),
    Card("Transformer2DModel", (stack(single("transformer_blocks")),)),
    Card("UVit2DModel", (stack(single("transformer_layers")),)),
)
