"""The demo's two tokenizers and its two frozen text encoders: never trained, but well conditioned.

A freshly initialised encoder says almost the same of every sentence (CLIP) and hardly tells the order of the words
(T5, whose text tokens get no position in FLUX either). Both are given weights here that keep what a sentence says.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from dit_cache_backends.demo.scenes import random_scene, vocabulary

TOKENS = 14  # the longest sentence has 12 words; CLIP adds a start and an end, T5 an end
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
POOLED_WIDTH = 64
TEXT_WIDTH = 128
# Where each T5 head looks, in words from the present one: adjective, article, noun, relation and beyond.
LOOKS = (-1, 1, -2, 2, -3, 3, -4, 4)


def tokenizer(start: bool) -> Any:
    """A word-level tokenizer of the grammar's words; `start` puts <s> first (CLIP), both put </s> last."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*SPECIAL, *vocabulary()])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if start else "$A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=TOKENS,
    )


def clip_encoder(tokens: Any, seed: int) -> Any:
    """A random `CLIPTextModel` whose pooled output has mean 0 and deviation 1 over the grammar's sentences."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width = POOLED_WIDTH
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=TOKENS,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embedding.weight"):
                weight.normal_(0, 1.0 if "token" in name else 0.7, generator=generator)
            elif name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
                weight.normal_(0, 1.5 * weight.shape[1] ** -0.5, generator=generator)
        embedding = model.get_input_embeddings().weight
        embedding[3] = 0  # the pooled token: what it gathers should outweigh what it is
        rng = random.Random(seed)
        sentences = ["", *(random_scene(rng).prompt for _ in range(2000))]
        ids = tokens(sentences, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        pooled = model(ids).pooler_output
        norm = next(m for n, m in model.named_modules() if n.endswith("final_layer_norm"))
        norm.weight /= pooled.std(0)
        norm.bias.copy_(-pooled.mean(0) / pooled.std(0))
    return model.requires_grad_(False)


def t5_encoder(tokens: Any, seed: int) -> Any:
    """A random `T5EncoderModel` whose heads look at fixed distances, so that each word knows its neighbours."""
    from transformers import T5Config, T5EncoderModel

    width = TEXT_WIDTH
    model = T5EncoderModel(
        T5Config(
            vocab_size=len(tokens),
            d_model=width,
            d_kv=width // len(LOOKS),
            d_ff=width,
            num_layers=2,
            num_heads=len(LOOKS),
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("shared.weight", "embed_tokens.weight")):
                weight.normal_(0, 1.0, generator=generator)
            elif name.endswith(("q.weight", "k.weight")):
                weight.normal_(0, 0.25 * weight.shape[1] ** -0.5, generator=generator)
            elif name.endswith(("v.weight", "o.weight")):
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            elif ".wi_" in name or name.endswith("wo.weight"):
                weight.normal_(0, 0.7 * weight.shape[1] ** -0.5, generator=generator)
            elif "relative_attention_bias" in name:
                weight.zero_()
                for head, distance in enumerate(LOOKS):  # buckets: 0..7 back, 16..23 ahead, one word each
                    weight[16 + distance if distance > 0 else -distance, head] = 6.0
        model.get_input_embeddings().weight[0] = 0
    return model.requires_grad_(False)
