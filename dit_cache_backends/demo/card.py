"""The model card: what the demo model is, how it was made, and what it scored, written next to its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dit_cache_backends import demo
from dit_cache_backends.demo import adherence, autoencoder, evaluate, flow, polish, scenes, text
from dit_cache_backends.demo.adherence import Adherence

PROMPTS = 300
GUIDED = 100  # of them are also painted with guidance
STEPS = 28


def write(
    folder: Path,
    seconds: float,
    phases: tuple[tuple[int, float], ...] = flow.PHASES,
    distilled: tuple[tuple[int, float], ...] = flow.GUIDED_PHASES,
    device: str = "cpu",
) -> str:
    """Scores the pipeline in `folder` on held-out prompts, writes `folder`/README.md and gives back the scores."""
    pipeline = demo.load_demo(folder)
    prompts = demo.held_out_prompts(PROMPTS)
    guidance: dict[str, Any] = {"true_cfg_scale": 2.0, "negative_prompt": ""}
    _, dense = evaluate.measure(pipeline, prompts, num_inference_steps=STEPS)
    _, guided = evaluate.measure(pipeline, prompts[:GUIDED], num_inference_steps=STEPS, **guidance)
    columns = {f"dense, {len(dense)} prompts": dense, f"true_cfg_scale 2, {len(guided)} of them": guided}
    table = _table(columns)
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
    facts = {
        "mb": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name != "README.md") / 1e6,
        "shapes": ", ".join(scenes.SHAPES),
        "colors": ", ".join(scenes.COLORS),
        "grounds": ", ".join(scenes.BACKGROUNDS),
        "tokens": text.TOKENS,
        "samples": scenes.SUPERSAMPLING,
        "pairs": scenes.PAIRS,
        "both": " and ".join(f"{phase[0]:,}" for phase in autoencoder.PHASES),
        "decoder": sum(phase[0] for phase in autoencoder.DECODER_PHASES),
        "polish": " and ".join(str(steps) for steps, _ in polish.PHASES),
        "vae_batch": autoencoder.BATCH,
        "rates": ", then ".join(f"{n:,} steps from {rate:g}" for n, rate in phases),
        "warm_up": flow.WARM_UP,
        "batch": flow.BATCH,
        "empty": flow.EMPTY,
        "guided": sum(n for n, _ in distilled),
        "guidance": flow.GUIDANCE,
        "ema": flow.EMA,
        "steps": sum(n for n, _ in (*phases, *distilled)),
        "minutes": seconds / 60,
        "where": "one GPU" if device.startswith("cuda") else "one CPU core",
        "prompts": PROMPTS,
        "sampling": STEPS,
        "table": table,
        **{name: sum(w.numel() for w in getattr(pipeline, name).parameters()) for name in parts},
    }
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
    return table


CARD = """# The demo model

A text-to-image `FluxPipeline` of diffusers, 64x64 pixels, {mb:.1f} MB in float16. It knows one small world: flat
shapes on plain grounds. It is here so that a cache backend can be tried on a real, trained diffusion transformer
within seconds, on any CPU and without a network. It is of no other use.

```python
from dit_cache_backends.demo import load_demo, paint

picture = paint(load_demo(), ["a large red circle on a white background"])[0]
```

## Sentences

- "a {{small|large}} COLOUR SHAPE on a GROUND background"
- "a COLOUR SHAPE {{above|left of}} a COLOUR SHAPE on a GROUND background"

Shapes: {shapes}.
Colours: {colors}.
Grounds: {grounds}.
A thing never has its ground's colour, and two things never have the same.

## Parts

| part | what | parameters |
|---|---|---:|
| transformer | `FluxTransformer2DModel`, 4 double and 8 single blocks of width 128 | {transformer:,} |
| vae | `AutoencoderKL`, three levels, a whitened latent of 4x16x16 | {vae:,} |
| text_encoder | `CLIPTextModel`, random and frozen, its output at mean 0 and deviation 1 | {text_encoder:,} |
| text_encoder_2 | `T5EncoderModel`, random and frozen, its heads look at fixed distances | {text_encoder_2:,} |
| tokenizers | one number per word of the grammar | |

The transformer sees 64 image tokens and {tokens} text tokens.

## Data

Drawn with Pillow ({samples}x{samples} samples a pixel), sizes and places varied a little; {pairs:.0%} of the scenes
have two things. One combination in ten, chosen by a hash of its sentence, is held out: neither the autoencoder nor
the transformer has seen it, and all scores below are of these. No picture and no text is anybody else's.

## Training

`make train-demo` does all of it again. Autoencoder: {both} steps of both halves, {decoder:,} of the decoder alone, and
{polish} of the decoder on latents that the transformer, after each of its phases, had found in noisy ones; batch
{vae_batch}. Transformer: flow matching as FLUX (the target is noise minus data), logit-normal times, AdamW
({rates}, warm-up {warm_up}, cosine), batch {batch}, {empty:.0%} empty sentences, gradients clipped at 1,
weights averaged with {ema}, float32. Then guidance was distilled into it, as into FLUX.1-dev (Meng et al., arXiv
2210.03142): in {guided:,} more steps a plain call learned to give what two calls with `true_cfg_scale={guidance:g}`
gave. The transformer's {steps:,} steps took {minutes:.0f} minutes on {where}.

## Scores

Share of pictures that keep to their sentence, in per cent: {prompts} held-out prompts, {sampling} steps, one picture
each. Colour, shape, size, background and relation are measured from the pixels
(`dit_cache_backends/demo/adherence.py`); "total" is all of them in one picture, and nothing more on it.

{table}
"""


def _table(columns: dict[str, list[Adherence]]) -> str:
    """Scores in Markdown, a column per way of sampling."""
    rows: dict[str, list[str]] = {}
    for scores in columns.values():
        kinds = {
            "one thing": [s for s in scores if s.relation is None],
            "two things": [s for s in scores if s.relation is not None],
        }
        shares = adherence.shares(scores)
        shares |= {f"total, {n}": adherence.shares(k)["total"] for n, k in kinds.items() if k}
        for name, share in shares.items():
            rows.setdefault(name, []).append(f"{100 * share:.1f}")
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items())])
