"""torch.compile around a cached model: graph breaks and recompilations, counted; a cached step, timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dit_cache_backends.api import enable_cache
from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import CacheDiT, Ours, Plain
from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.bench.peers import cache_dit_arguments, import_cache_dit
from dit_cache_backends.bench.rounds import measure
from dit_cache_backends.bench.shapes import ARITHMETIC, Shape, make_ideal, make_inputs, make_model
from dit_cache_backends.bench.steps import ALL, IDEAL, KINDS, Kinds, row

SHAPE = Shape("compiled", 2, 3, 2, 32, 64, 16)
RUNS = ((7, 0.2), (10, 0.3), (5, 0.25))
"""Steps and threshold of the runs that follow each other."""
BRANCHES = ("cond", "uncond")
ORDERS = ("enable, compile", "compile, enable")


TIMED: Kinds = {
    "cached": KINDS["cached"],
    "static mask, cached": (
        "cache_dit",
        # Longer than what is measured: beyond the mask, steps compute.
        {**ALL, "steps_computation_mask": [1] + [0] * 9999, "steps_computation_policy": "static"},
    ),
}
"""The cached steps that are timed: decided by a difference, and known beforehand."""


class Graphs:
    """A compiler that runs what it is given as it is, and counts. ``torch.compile(model, backend=Graphs())``."""

    def __init__(self) -> None:
        self.compiled = 0
        """Graphs made, again and again for one function where it is recompiled."""
        self.ran = 0
        """Graphs executed."""

    def __call__(self, graph: torch.fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*arguments: Any) -> Any:
            self.ran += 1
            return graph.forward(*arguments)

        return run


@dataclass(frozen=True)
class Way:
    """One way to compile."""

    words: str
    compile: Callable[[Any, Graphs], Any]
    options: Mapping[str, Any]
    settled: int = 1
    """The step of the first run after which nothing may be compiled: that of the second computed step."""


def _whole(full: bool) -> Callable[[Any, Graphs], Any]:
    return lambda model, graphs: torch.compile(model, backend=graphs, fullgraph=full)


def _repeated(model: Any, graphs: Graphs) -> Any:
    model.compile_repeated_blocks(backend=graphs, fullgraph=True)
    return model


_MASK = {"steps_computation_mask": "1011001100", "steps_computation_policy": "static"}
WAYS = (
    Way("whole model", _whole(False), ALL),
    Way("whole model, fullgraph", _whole(True), ALL),
    Way("whole model, fullgraph, known decision", _whole(True), {**ALL, **_MASK}, 2),
    Way("repeated blocks, fullgraph", _repeated, ALL),
)


def run(asked: Asked) -> dict[str, Any]:
    """Count for each way and order; time the cached step where inductor can compile."""
    rows = []
    who = {"ours": _ours, **({"cache-dit": _cache_dit} if asked.cache_dit else {})}
    for way in WAYS[1:2] if asked.quick else WAYS:
        for order in ORDERS[:1] if asked.quick else ORDERS:
            for name, drive in who.items():
                asked.say(f"{way.words}, {order}, {name}")
                rows.append(_counted(way, order, name, drive))
    found: dict[str, Any] = {"words": SHAPE.words(), "rows": rows}
    if not asked.quick:
        found["timed"] = _timed(asked)
    return found


Driver = Callable[[Any, Way, str, Graphs], Iterator[None]]


def _counted(way: Way, order: str, who: str, drive: Driver) -> dict[str, Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    graphs, early = Graphs(), 0
    found = {"way": way.words, "order": order, "who": who}
    try:
        with torch.no_grad():
            for number, _ in enumerate(drive(make_model(SHAPE), way, order, graphs)):
                if number == way.settled:
                    early = graphs.compiled
    except Exception as error:
        return {**found, "raises": type(error).__name__}
    finally:
        breaks = sum(counters["graph_break"].values())
        torch._dynamo.reset()
    return {**found, "breaks": breaks, "graphs": graphs.compiled, "recompilations": graphs.compiled - early}


def _inputs(step: int) -> dict[str, Any]:
    """Another picture for the second step and each fourth from there, near ones between: computed, and skipped."""
    far = make_inputs(SHAPE, seed=0 if step == 0 else 1 + (step - 1) // 4)
    return far[step % 2]


def _ours(model: Any, way: Way, order: str, graphs: Graphs) -> Iterator[None]:
    called = way.compile(model, graphs) if order == ORDERS[1] else None
    target = model if called is None else called
    for steps, threshold in RUNS:
        with enable_cache(target, "cache_dit", **_options(way, steps, threshold)) as enabled:
            backend: Any = enabled
            if called is None:
                called = way.compile(model, graphs)
            for step in range(steps):
                for branch in BRANCHES:
                    with backend.step(step, steps, branch):
                        called(**_inputs(step))
                yield


def _cache_dit(model: Any, way: Way, order: str, graphs: Graphs) -> Iterator[None]:
    library = import_cache_dit()
    called = way.compile(model, graphs) if order == ORDERS[1] else None
    enabled = False
    for steps, threshold in RUNS:
        arguments = cache_dit_arguments("cache_dit", _options(way, steps, threshold))
        arguments["cache_config"].update(enable_separate_cfg=True, num_inference_steps=steps)
        # On the model itself: what torch.compile gives is no transformer that it knows.
        if enabled:
            library.refresh_context(model, verbose=False, **arguments)
        else:
            library.enable_cache(model, **arguments)
            enabled = True
        if called is None:
            called = way.compile(model, graphs)
        for step in range(steps):
            for _ in BRANCHES:
                called(**_inputs(step))
            yield


def _options(way: Way, steps: int, threshold: float) -> dict[str, Any]:
    options = {**way.options, "residual_diff_threshold": threshold}
    if "steps_computation_mask" in options:
        options["steps_computation_mask"] = options["steps_computation_mask"][:steps]
    return options


class _Compiled:
    """A contender on a model of its own, which it keeps, and calls compiled."""

    def __init__(self, inner: Plain) -> None:
        self.inner = inner
        self.key = inner.key
        inner.enter()
        inner.model = torch.compile(inner.model)  # type: ignore[assignment]

    def enter(self) -> None:
        """It is on already."""

    def leave(self) -> None:
        """It stays."""

    def step(self) -> None:
        self.inner.step()


def _timed(asked: Asked) -> dict[str, Any]:
    """The compiled cached steps over the compiled ideal one, on the shape where time goes into arithmetic."""
    model, inputs = make_model(ARITHMETIC), make_inputs(ARITHMETIC)
    torch._dynamo.reset()
    try:
        # One code object serves the models of all: as many entries as they have graphs.
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=64):
            made = [_Compiled(Plain(IDEAL, make_ideal(model, ARITHMETIC), inputs))]
            for kind, (backend, options) in TIMED.items():
                made.append(_Compiled(Ours(kind, _twin(model), inputs, backend, options)))
                if asked.cache_dit:
                    made.append(_Compiled(CacheDiT(kind, _twin(model), inputs, backend, options)))
            seconds = {}
            for each in made:
                asked.say(f"inductor compiles: {' by '.join(each.key)}")
                began = time.perf_counter()
                for _ in range(3):
                    each.step()
                seconds[each.key] = time.perf_counter() - began
            times = measure(made, 20, 0.3, asked.say)
    except Exception as error:  # whatever inductor, its C++ compiler or a library thinks of it
        return {"raises": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        torch._dynamo.reset()
    return {
        "words": ARITHMETIC.words(),
        "rows": [{**row(each.key, times), "first_calls_s": seconds[each.key]} for each in made],
    }


def _twin(model: Any) -> Any:
    """A model of its own with the very weights of ``model``."""
    return copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})


_WORDS = """
Three runs of 7, 10 and 5 steps on two branches, each with another threshold; some steps are computed and some
skipped by their difference (or, where it says so, by a mask). Graph breaks are those of `torch._dynamo`'s own
counter; recompilations are graphs that are compiled after the second computed step of the first run. Counted with a
compiler that runs a graph as it is. "Enable, compile": the cache is enabled first. cache-dit is enabled on the
model itself in both orders, since it does not know what `torch.compile` gives.
"""
_TIMED_WORDS = """
The cached step of a model compiled as a whole by inductor, over the ideal cached step compiled in the same way, in
rounds as above: "cached" is decided by a difference, "static mask" before the step. "First calls": three steps with
all that is compiled for them.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    heads = ("compiled", "order", "by", "graph breaks", "graphs", "recompilations")
    rows = [
        (
            row["way"],
            row["order"],
            row["who"],
            *(
                (f"raises {row['raises']}", "-", "-")
                if "raises" in row
                else (str(row["breaks"]), str(row["graphs"]), str(row["recompilations"]))
            ),
        )
        for row in found["rows"]
    ]
    body: list[str | Table] = [_WORDS, f"Flux {found['words']}.", Table(heads, rows, 3)]
    timed = found.get("timed", {})
    if "raises" in timed:
        body.append(f"The cached step could not be timed here: {timed['raises']}")
    elif timed:
        lines = [
            (
                row["kind"],
                row["who"],
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} {row['ratio_high']:.3f}",
                f"{row['ratio_of_minima']:.3f}",
                f"{row['first_calls_s']:.0f}",
            )
            for row in timed["rows"]
        ]
        names = ("step", "by", "median ms", "over ideal", "quartiles", "of minima", "first calls, s")
        body += [_TIMED_WORDS, f"Flux {timed['words']}.", Table(names, lines, 2)]
    return [Part("torch.compile", body)]
