"""What ``cache_dtype`` and ``cache_device`` save and cost."""

from __future__ import annotations

from typing import Any

import torch

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import Ours
from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.bench.requests import bytes_of
from dit_cache_backends.bench.rounds import measure
from dit_cache_backends.bench.shapes import Shape, make_inputs, make_model
from dit_cache_backends.bench.steps import KINDS
from dit_cache_backends.engine.storage import DTYPES

SHAPE = Shape("storage", 2, 4, 4, 64, 1024, 128, text_width=64)
STRATEGIES = ("cached, TaylorSeer 1", "dbprune, all but one pruned")
WAYS: tuple[dict[str, str], ...] = (
    {},
    *({"cache_dtype": name} for name in DTYPES if name != "float32"),
    {"cache_device": "cpu"},
    {"cache_device": "cpu", "cache_dtype": "bfloat16"},
)


def run(asked: Asked) -> dict[str, Any]:
    """Measure a computed and a cached step of each strategy with each way of keeping."""
    shape = asked.sized(SHAPE)
    model, inputs = make_model(shape), make_inputs(shape)
    rounds, turn = (2, 0.01) if asked.quick else (8, 0.1)
    rows = []
    for kind in STRATEGIES:
        backend, options = KINDS[kind]
        computing = {**options, "residual_diff_threshold": 1e-9}
        made, held = [], {}
        for way in WAYS:
            label = ", ".join(f"{name}: {value}" for name, value in way.items()) or "as it is"
            asked.say(f"{kind}, {label}")
            for what, chosen in (("cached", options), ("computed", computing)):
                taker = Ours(f"{what} | {label}", model, inputs, backend, {**chosen, **way})
                with torch.no_grad():
                    taker.enter()
                    for _ in range(options["max_warmup_steps"] + 1):
                        taker.step()
                    held[label] = bytes_of(taker.backend.held_tensors())
                    taker.leave()
                made.append(taker)
        times = measure(made, rounds, turn, asked.say)
        for label in held:
            found: dict[str, Any] = {"strategy": kind, "kept": label, "held": held[label]}
            for what in ("cached", "computed"):
                own, plain = times[f"{what} | {label}", Ours.who], times[f"{what} | as it is", Ours.who]
                found[what] = {
                    "median_ms": own.median * 1e3,
                    "ratio": own.ratio(plain),
                    "ratio_of_minima": own.minimum / plain.minimum,
                }
            rows.append(found)
    return {"words": shape.words(), "rows": rows}


_WORDS = """
What is kept between two steps, and what a cached and a computed step cost with it, over those that keep it as it
is. Reading takes the numbers back into the model's own type; on this machine, `cache_device: cpu` is where the
model is anyway, so it shows only what asking for it costs. What the types do to the pictures stands in
[configuration.md](configuration.md).
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    heads = ("steps", "kept", "held, KB", "cached, ms", "over as it is", "computed, ms", "over as it is")
    rows = [
        (
            row["strategy"],
            row["kept"],
            f"{row['held'] / 1024:.0f}",
            *(
                text
                for what in ("cached", "computed")
                for text in (
                    f"{row[what]['median_ms']:.2f}",
                    f"{row[what]['ratio']:.3f} ({row[what]['ratio_of_minima']:.3f})",
                )
            ),
        )
        for row in found["rows"]
    ]
    return [Part("cache_dtype and cache_device", (_WORDS, f"Flux {found['words']}.", Table(heads, rows, 2)))]
