"""How what a cache costs grows with the tokens, the blocks, the batch and the steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import Ours, Plain
from dit_cache_backends.bench.document import Part, Plot, Table, drawn
from dit_cache_backends.bench.rounds import measure
from dit_cache_backends.bench.shapes import Shape
from dit_cache_backends.bench.steps import IDEAL, KINDS, contenders, row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALL = Shape("scale", 2, 4, 2, 16, 16, 4)
_MEASURED = ("computed", "cached", "cached, uncompared")


def _blocks(count: int) -> Shape:
    return replace(_SMALL, double=count // 3, single=count - count // 3)


SWEEPS: dict[str, tuple[str, dict[int, Shape]]] = {
    "tokens": (
        "image tokens (6 blocks, dim 32)",
        {n: replace(_SMALL, image_tokens=n, text_tokens=n // 8) for n in (16, 64, 256, 1024, 2048)},
    ),
    "batch": (
        "samples of 64+16 tokens (6 blocks, dim 32)",
        {n: replace(_SMALL, image_tokens=64, text_tokens=16, batch=n) for n in (1, 2, 4, 8, 16)},
    ),
    "blocks": (
        "blocks (dim 32, 16+4 tokens)",
        {n: _blocks(n) for n in (6, 12, 24, 57, 114)},
    ),
}
RUNS = (8, 28, 100, 400)
"""Steps of the runs in which the cost of a step is watched."""


def run(asked: Asked) -> dict[str, Any]:
    """Measure each sweep; of a quick one its ends."""
    sweeps = {}
    for name, (_, shapes) in SWEEPS.items():
        points = []
        for at, shape in list(shapes.items())[: 2 if asked.quick else None]:
            asked.say(f"{name}: {at}")
            points.append({"at": at, "blocks": shape.blocks, "rows": _point(shape, asked)})
        sweeps[name] = points
    return {"sweeps": sweeps, "slopes": _slopes(sweeps["blocks"]), "runs": _runs(asked)}


def _point(shape: Shape, asked: Asked) -> list[dict[str, Any]]:
    kinds = {kind: KINDS[kind] for kind in _MEASURED}
    made = contenders(shape, replace(asked, first_block=False, say=lambda _: None), kinds)
    times = measure(made, 2 if asked.quick else 6, 0.01 if asked.quick else 0.03)
    return [row(each.key, times) for each in made]


def _slopes(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Microseconds for each further block, by least squares through the fastest steps."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for point in points:
        for each in point["rows"]:
            if each["kind"].startswith("cached"):
                series.setdefault((each["kind"], each["who"]), []).append(
                    (point["blocks"], each["over_us_of_minima"])
                )
    return [
        {
            "kind": kind,
            "who": who,
            "us_per_block": statistics.linear_regression(*zip(*each, strict=True)).slope,
        }
        for (kind, who), each in series.items()
    ]


def _runs(asked: Asked) -> list[dict[str, Any]]:
    """The cost of a cached step in runs of different length: of the whole run, and of its last quarter."""
    kinds = {"cached": KINDS["cached"]}
    made = contenders(_SMALL, replace(asked, first_block=False, say=lambda _: None), kinds)
    takers = [each for each in made if each.kind in ("cached", IDEAL)]
    found = []
    for steps in RUNS[: 1 if asked.quick else None]:
        asked.say(f"runs of {steps} steps")
        found += [{"steps": steps, **each} for each in _run(takers, steps, 1 if asked.quick else 3)]
    return found


def _run(takers: Sequence[Plain], steps: int, rounds: int) -> list[dict[str, Any]]:
    import time

    import torch

    taken: dict[str, list[list[float]]] = {each.who: [] for each in takers}
    with torch.no_grad():
        for _ in range(rounds):
            for each in takers:
                each.restart(steps)
                each.enter()
                each.step()  # computed
                run: list[float] = []
                for _ in range(steps - 1):
                    began = time.process_time()
                    each.step()
                    run.append(time.process_time() - began)
                each.leave()
                taken[each.who].append(run)
    # The fastest of each step over the rounds: what others do on the machine is in single steps of single rounds.
    best = {who: [min(step) for step in zip(*each, strict=True)] for who, each in taken.items()}
    ideal = statistics.median(best[Plain.who])
    return [
        {
            "who": who,
            "over_us": (statistics.median(each) - ideal) * 1e6,
            "last_over_us": (statistics.median(each[-max(1, len(each) // 4) :]) - ideal) * 1e6,
        }
        for who, each in best.items()
        if who != Plain.who
    ]


_WORDS = """
What a step costs more than the dense step (computed) or the ideal cached one (cached), over the size of the model's
inputs, on models with next to no arithmetic, where it is seen best. By the fastest steps. "Compared" takes the
difference of two tensors as large as the image stream, which is arithmetic that grows with them in every library;
uncompared steps show what is left of it.
"""
_SLOPE_WORDS = """
The cost of each further block of the model, by least squares through the points of the plot above: on a cached step
the block is skipped, so this is the model's own loop, the wrapper's question and its answer.
"""
_RUN_WORDS = """
The median cached step of a whole run, and of its last quarter, over the ideal one: what grows with the steps done
would be seen here.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    body: list[str | Table | Plot] = [_WORDS]
    for name, points in found["sweeps"].items():
        words = SWEEPS[name][0]
        rows = [_line(point) for point in points]
        whose = list(dict.fromkeys(each["who"] for point in points for each in point["rows"]))[1:]
        kinds = [f"{kind}, {who}: us more (ratio)" for kind in _MEASURED for who in whose]
        body += [
            Plot(f"{name}", f"cost over {words}", drawn(_drawer(points, words), (14.0, 4.5))),
            Table((words, "dense ms", "ideal ms", *kinds), rows),
        ]
    slopes = [(each["kind"], each["who"], f"{each['us_per_block']:.2f}") for each in found["slopes"]]
    runs = [
        (str(each["steps"]), each["who"], f"{each['over_us']:.0f}", f"{each['last_over_us']:.0f}")
        for each in found["runs"]
    ]
    return [
        Part("Cost over tokens, samples and blocks", body),
        Part("Cost of a block", (_SLOPE_WORDS, Table(("step", "by", "us per block"), slopes, 2))),
        Part(
            "Cost over steps",
            (
                _RUN_WORDS,
                Table(("steps of the run", "by", "us more, whole run", "us more, last quarter"), runs, 2),
            ),
        ),
    ]


def _line(point: Mapping[str, Any]) -> list[str]:
    rows = {(each["kind"], each["who"]): each for each in point["rows"]}
    whose = [who for kind, who in rows if kind == _MEASURED[0]]
    return [
        str(point["at"]),
        *(f"{rows[kind, Plain.who]['minimum_ms']:.2f}" for kind in ("dense", IDEAL)),
        *(
            f"{rows[kind, who]['over_us_of_minima']:.0f} ({rows[kind, who]['ratio_of_minima']:.3f})"
            for kind in _MEASURED
            for who in whose
        ),
    ]


def _drawer(points: Sequence[Mapping[str, Any]], words: str) -> Callable[[Figure], None]:
    panels = (
        ("a cached step: us more than the ideal one", _MEASURED[1:], "over_us_of_minima"),
        ("a computed step: us more than dense", _MEASURED[:1], "over_us_of_minima"),
        ("how many times the ideal, or dense, step", _MEASURED, "ratio_of_minima"),
    )

    def draw(figure: Figure) -> None:
        for axes, (title, kinds, value) in zip(figure.subplots(1, 3), panels, strict=True):
            for kind in kinds:
                series: dict[str, list[float]] = {}
                for point in points:
                    for each in point["rows"]:
                        if each["kind"] == kind:
                            series.setdefault(each["who"], []).append(each[value])
                for who, values in series.items():
                    axes.plot(
                        [point["at"] for point in points],
                        values,
                        label=f"{kind}, {who}",
                        color="C0" if who == Ours.who else "C3",
                        linestyle={"computed": "-.", "cached": "-"}.get(kind, "--"),
                        marker="o" if who == Ours.who else "s",
                    )
            axes.set_xscale("log", base=2)
            axes.set_xticks([point["at"] for point in points], [str(point["at"]) for point in points])
            axes.set_xlabel(words)
            axes.set_title(title, fontsize="medium")
            axes.set_ylim(
                bottom=min(1.0, axes.get_ylim()[0]) if "ratio" in value else min(0.0, axes.get_ylim()[0])
            )
            axes.grid(alpha=0.3)
        # The last panel has every line of the others.
        lines, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=len(_MEASURED), fontsize="small")

    return draw
