"""What a step of each kind costs, beside the plain step and the least that a cached step can be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.blocks import counted
from dit_cache_backends.bench.contenders import CacheDiT, FirstBlock, Ours, Plain
from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.bench.rounds import TURN, Key, Times, measure
from dit_cache_backends.bench.shapes import SHAPES, Shape, make_ideal, make_inputs, make_model

NEVER, ALWAYS = 1e-9, 0.99
"""Thresholds below and above every difference between the two inputs (``shapes.CLOSE``): both are compared."""
ALL = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "max_warmup_steps": 1,
    "max_continuous_cached_steps": -1,
}
Kinds = Mapping[str, tuple[str, dict[str, Any]]]
KINDS: Kinds = {
    "computed": ("cache_dit", {**ALL, "residual_diff_threshold": NEVER}),
    "never skipping": ("cache_dit", {**ALL, "residual_diff_threshold": 0.0}),
    "dbprune, nothing pruned": ("dbprune", {**ALL, "residual_diff_threshold": NEVER}),
    "cached": ("cache_dit", {**ALL, "residual_diff_threshold": ALWAYS}),
    "cached, uncompared": ("cache_dit", {**ALL, "residual_diff_threshold": 1.0}),
    "cached, TaylorSeer 1": (
        "cache_dit",
        {**ALL, "residual_diff_threshold": ALWAYS, "max_warmup_steps": 5, "enable_taylorseer": True},
    ),
    "dbprune, all but one pruned": ("dbprune", {**ALL, "residual_diff_threshold": ALWAYS}),
}
"""The backend and the options with which every step after the warm-up is of that kind. cache-dit takes the same."""
FIRST_BLOCK = ("computed", "cached")
"""The kinds that FirstBlockCache has, too."""
DENSE, IDEAL = "dense", "ideal"
RUN_ALL = (DENSE, "computed", "never skipping", "dbprune, nothing pruned")
"""Kinds of steps in which every block runs: held against the plain step, the others against the ideal cached one."""
ROUNDS = {"flux-512": 8, "python-bound": 45, "demo-like": 15}
TURNS = {"flux-512": 0.3}
"""Seconds of a turn, where ``rounds.TURN`` would be a single cached step."""
LEFT_OUT = {"flux-512": ("never skipping", "dbprune, nothing pruned", "dbprune, all but one pruned")}
"""Where a step takes seconds: kinds that differ from others by what the Python-bound shape shows."""


def contenders(shape: Shape, asked: Asked, kinds: Kinds = KINDS) -> list[Plain]:
    """Every way to make every kind of step on one model of ``shape``, warmed up."""
    model, inputs = make_model(shape), make_inputs(shape)
    dense, ideal = Plain(DENSE, model, inputs), Plain(IDEAL, make_ideal(model, shape), inputs)
    made: list[Plain] = [dense, ideal]
    for kind, (backend, options) in kinds.items():
        here: list[Plain] = [Ours(kind, model, inputs, backend, options)]
        if asked.cache_dit:
            here.append(CacheDiT(kind, model, inputs, backend, options))
        if asked.first_block and kind in FIRST_BLOCK:
            here.append(FirstBlock(kind, model, inputs, options["residual_diff_threshold"]))
        with torch.no_grad():
            for each in here:
                asked.say(f"{shape.name}: warming up {' by '.join(each.key)}")
                each.enter()
                for _ in range(options["max_warmup_steps"] + 1):
                    each.step()
                each.leave()
        made += here
    # Next to what they are held against.
    return sorted(made, key=lambda each: (each.kind not in RUN_ALL, each not in (dense, ideal)))


def run(asked: Asked) -> dict[str, Any]:
    """Measure the steps of each shape."""
    found = {}
    for name in asked.shapes:
        left_out = LEFT_OUT.get(name, ())
        kinds = {kind: each for kind, each in KINDS.items() if asked.kinds in kind and kind not in left_out}
        shape = asked.sized(SHAPES[name])
        made = contenders(shape, asked, kinds)
        rounds = asked.rounds or (3 if asked.quick else ROUNDS[name])
        times = measure(
            made, rounds, 0.01 if asked.quick else TURNS.get(name, TURN), partial(_say, asked, name)
        )
        found[name] = {
            "words": shape.words(),
            "blocks": shape.blocks,
            "rounds": rounds,
            "rows": [{**_blocks(each), **row(each.key, times)} for each in made],
        }
    return {"shapes": found}


def _say(asked: Asked, name: str, text: str) -> None:
    asked.say(f"{name}: {text}")


def _blocks(contender: Plain) -> dict[str, int]:
    with torch.no_grad(), counted(contender.model) as ran:
        contender.enter()
        contender.step()
        contender.leave()
    return {"blocks_run": ran.blocks}


def row(key: Key, times: Mapping[Key, Times]) -> dict[str, Any]:
    """What one contender took, as plain data."""
    kind, who = key
    base = DENSE if kind in RUN_ALL else IDEAL
    own, other = times[key], times[base, Plain.who]
    low, high = own.spread(other)
    return {
        "kind": kind,
        "who": who,
        "steps": sum(map(len, own.rounds)),
        "median_ms": own.median * 1e3,
        "minimum_ms": own.minimum * 1e3,
        "base": base,
        "ratio": own.ratio(other),
        "ratio_low": low,
        "ratio_high": high,
        "ratio_of_minima": own.minimum / other.minimum,
        "over_us": own.over(other) * 1e6,
        "over_us_of_minima": (own.minimum - other.minimum) * 1e6,
        "elsewhere": max(0.0, 1 - sum(map(sum, own.rounds)) / own.wall),
    }


_WORDS = """
A step is one call of the transformer. "Computed" compares what the first block adds with what it added before, runs
every block and stores what the others added; "cached" compares, runs the first block and adds what was stored;
"uncompared" is a step that a mask or a threshold of 1 has decided; "never skipping" has a threshold of 0. dbprune
compares the input of each block but the first. Dense is the plain model; the ideal cached step is a model of the
embedding, the first block, one addition, norm and projection: what a cache cannot go below. All are one and the
same model in one process: every library is put on it and taken off again in each round, and every other round goes
the other way round. A ratio is the median over the rounds of the median step over that of the base in the same
round, with the quartiles beside it; "of minima" compares the fastest steps. Times are the process's own (CPU) time,
with the garbage collector off.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    heads = ("step", "by", "blocks run", "median ms", "over", "ratio", "quartiles", "of minima", "more, us")
    parts = [Part("What a step costs", (_WORDS,))]
    for name, shape in found["shapes"].items():
        rows = [
            (
                row["kind"],
                row["who"],
                str(row["blocks_run"]),
                f"{row['median_ms']:.3f}",
                row["base"],
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} {row['ratio_high']:.3f}",
                f"{row['ratio_of_minima']:.3f}",
                f"{row['over_us']:.0f}",
            )
            for row in shape["rows"]
        ]
        busy = max(row["elsewhere"] for row in shape["rows"])
        rest = f"{shape['rounds']} rounds. The processor was with others for {busy:.0%} of the time at most."
        parts.append(Part(f"{name}: Flux {shape['words']}", (rest, Table(heads, rows, 2))))
    return parts
