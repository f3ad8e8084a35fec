"""Many requests on one model, a step of each in turn: what each holds, and whether it gives what it gives alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_cache_backends.api import enable_cache
from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import CacheDiT
from dit_cache_backends.bench.document import Part, Plot, Table, drawn
from dit_cache_backends.bench.shapes import Shape, make_inputs, make_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = Shape("requests", 2, 4, 4, 64, 256, 64, text_width=64)
STEPS = 6
COUNTS = (1, 2, 4, 8, 16, 32, 64)
OPTIONS: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "max_warmup_steps": 4,
    "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 0.99,
    "enable_taylorseer": True,
}
"""Four computed steps and two that are foretold."""


class Request:
    """One generation: its noise, which the transformer's outputs carry to a picture in Euler steps."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.arguments = make_inputs(shape, seed)[0]

    def step(self, model: Any, index: int) -> None:
        """Make a denoising step."""
        latents = self.latents
        time = torch.full_like(self.arguments["timestep"], 1 - index / STEPS)
        velocity = model(**{**self.arguments, "timestep": time})[0]
        self.arguments["hidden_states"] = latents - velocity / STEPS

    @property
    def latents(self) -> Tensor:
        """What is drawn, as far as it has come."""
        latents: Tensor = self.arguments["hidden_states"]
        return latents


def run(asked: Asked) -> dict[str, Any]:
    """Run more and more requests at once, and compare each with the same one alone."""
    shape = replace(SHAPE, heads=2, image_tokens=64, text_tokens=16) if asked.quick else SHAPE
    counts = COUNTS[: 3 if asked.quick else None]
    model = make_model(shape)
    with torch.no_grad():
        rows = _ours(asked, shape, model, counts)
        if asked.cache_dit:
            rows += _cache_dit(asked, shape, model, counts[:3])
    return {"words": shape.words(), "steps": STEPS, "rows": rows}


def _ours(asked: Asked, shape: Shape, model: Any, counts: Sequence[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    backend: Any = enable_cache(model, "cache_dit", **OPTIONS)
    with backend:
        alone: list[Tensor] = []
        for number in range(counts[-1]):
            request = Request(shape, number)
            for index in range(STEPS):
                with backend.step(index, STEPS, "cond"):
                    request.step(model, index)
            alone.append(request.latents)
        for count in counts:
            asked.say(f"{count} at once")
            requests = [Request(shape, number) for number in range(count)]
            empty, full, most = _resident(), 0, 0
            for index in range(STEPS):
                for key, request in enumerate(requests):
                    with backend.session(key), backend.step(index, STEPS, "cond"):
                        request.step(model, index)
                most = max(most, bytes_of(backend.held_tensors()))
                if index == STEPS - 2:
                    full = _resident()
            right = _same([request.latents for request in requests], alone)
            rows.append(
                {
                    "who": "ours",
                    "requests": count,
                    "right": right,
                    "held": most,
                    "held_after": bytes_of(backend.held_tensors()),
                    "resident": full - empty,
                }
            )
            for key in range(count):
                backend.end_session(key)
    return rows


def _cache_dit(asked: Asked, shape: Shape, model: Any, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The library has one state for each transformer: what comes of it when requests take turns."""
    taker = CacheDiT("requests", model, (), "cache_dit", OPTIONS)

    def draw(requests: Sequence[Request]) -> list[Tensor]:
        taker.restart(STEPS * len(requests))
        taker.enter()
        for index in range(STEPS):
            for request in requests:
                request.step(model, index)
        taker.leave()
        return [request.latents for request in requests]

    alone = [draw([Request(shape, number)])[0] for number in range(counts[-1])]
    rows = []
    for count in counts:
        asked.say(f"cache-dit, {count} at once")
        drawn = draw([Request(shape, number) for number in range(count)])
        rows.append({"who": "cache-dit", "requests": count, "right": _same(drawn, alone)})
    return rows


def _same(drawn: Sequence[Tensor], alone: Sequence[Tensor]) -> int:
    return sum(torch.equal(one, other) for one, other in zip(drawn, alone, strict=False))


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of some tensors; what several share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def _resident() -> int:
    """Bytes of memory that this process has, when the allocator has given back what is free."""
    import psutil

    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


_WORDS = """
So many requests, each with a noise of its own, take turns on one transformer, a denoising step each (six steps,
TaylorSeer 1). "Right" is how many end with the very bits that the request gives alone. Held is what the backend
keeps of them at the most; the process's memory is that before the last step, less that before the first one.
cache-dit has one state for a transformer: its requests go one by one, and taking turns is shown for what comes of
it.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    rows = [
        (
            row["who"],
            str(row["requests"]),
            f"{row['right']} of {row['requests']}",
            *(
                (
                    f"{row['held'] / 1024:.0f}",
                    f"{row['held'] / 1024 / row['requests']:.0f}",
                    f"{row['resident'] / 1024 / row['requests']:.0f}",
                    str(row["held_after"]),
                )
                if "held" in row
                else ("-",) * 4
            ),
        )
        for row in found["rows"]
    ]
    heads = (
        "by",
        "requests at once",
        "right",
        "held, KB",
        "held for each, KB",
        "process more, for each, KB",
        "held after, bytes",
    )
    words = f"Flux {found['words']}."
    return [
        Part(
            "Many requests at once",
            (
                _WORDS,
                words,
                Table(heads, rows),
                Plot("requests", "memory over requests", drawn(_drawer(found["rows"]))),
            ),
        )
    ]


def _drawer(rows: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
    ours = [row for row in rows if "held" in row]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        at = [row["requests"] for row in ours]
        for name, words, mark in (("held", "held by the cache", "o-"), ("resident", "process", "s--")):
            axes.plot(at, [row[name] / 2**20 for row in ours], mark, label=words)
        axes.set_xlabel("requests at once")
        axes.set_ylabel("MB more than before")
        axes.grid(alpha=0.3)
        axes.legend()

    return draw
