"""The cards, a row for each transformer class, read from diffusers 0.42.1 and tried on tiny models."""

from dit_cache_backends.models.card import BlockList, Card, stack

H, E, X = "hidden_states", "encoder_hidden_states", "x"


def _joint(path: str, gives: tuple[str, str]) -> BlockList:
    """Blocks through which image and text run side by side."""
    return BlockList(path, takes=(H, E), gives=gives)


def _single(path: str, name: str = H) -> BlockList:
    """Blocks with one stream, returned as a bare tensor."""
    return BlockList(path, takes=(name,), gives=name)


CARDS: tuple[Card, ...] = (
    Card(
        "ChromaTransformer2DModel",
        (stack(_joint("transformer_blocks", (E, H))), stack(_single("single_transformer_blocks"))),
    ),
    Card("CogVideoXTransformer3DModel", (stack(_joint("transformer_blocks", (H, E))),)),
    Card("DiTTransformer2DModel", (stack(_single("transformer_blocks")),)),
    Card(
        "Flux2Transformer2DModel",
        (stack(_joint("transformer_blocks", (E, H))), stack(_single("single_transformer_blocks"))),
    ),
    Card(
        "FluxTransformer2DModel",
        (stack(_joint("transformer_blocks", (E, H)), _joint("single_transformer_blocks", (E, H))),),
    ),
    Card(
        "GlmImageTransformer2DModel",
        (stack(_joint("transformer_blocks", (H, E))),),
        must_run=(("kv_caches.caches.0.mode", ("write",)),),
    ),
    Card(
        "HunyuanVideoTransformer3DModel",
        (stack(_joint("transformer_blocks", (H, E))), stack(_joint("single_transformer_blocks", (H, E)))),
    ),
    Card("PixArtTransformer2DModel", (stack(_single("transformer_blocks")),)),
    Card("QwenImageTransformer2DModel", (stack(_joint("transformer_blocks", (E, H))),)),
    Card("SD3Transformer2DModel", (stack(_joint("transformer_blocks", (E, H))),)),
    Card("WanTransformer3DModel", (stack(_single("blocks")),)),
    Card("ZImageTransformer2DModel", (stack(_single("layers", X)),)),
)
