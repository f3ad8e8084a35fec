"""What a cache keeps: bytes for each branch between two steps, and after the run."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import CacheDiT, FirstBlock, Ours, Plain
from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.bench.shapes import Shape, make_inputs, make_model
from dit_cache_backends.bench.steps import ALL, ALWAYS

STEPS = 10
FLUX = Shape("held", 2, 3, 2, 16, 64, 16)
"""Image and text streams of different sizes, so that they can be told apart."""


def make_wan() -> tuple[Any, tuple[dict[str, Any], ...]]:
    """A small Wan transformer, whose text goes into every block and never changes, and arguments of two calls."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=5,
        )
    noise = torch.Generator().manual_seed(0)
    first: dict[str, Any] = {
        "hidden_states": torch.randn(1, 4, 2, 16, 16, generator=noise),
        "encoder_hidden_states": torch.randn(1, 16, 32, generator=noise),
        "timestep": torch.full((1,), 500),
        "return_dict": False,
    }
    return model.eval().requires_grad_(False), (first, {**first, "timestep": first["timestep"] - 1})


MODELS: dict[str, tuple[str, tuple[str, ...], dict[str, int]]] = {
    "flux": (
        "Flux: an image and a text stream, one branch",
        ("cond",),
        {"image": FLUX.image_tokens * FLUX.width * 4, "text": FLUX.text_tokens * FLUX.width * 4},
    ),
    "wan": (
        "Wan: the text never changes; two branches",
        ("cond", "uncond"),
        {"image": 2 * 8 * 8 * 32 * 4, "text": 16 * 32 * 4},
    ),
}
"""What it is, its branches, and the bytes of its streams."""


@contextmanager
def newborn() -> Iterator[Callable[[], dict[int, int]]]:
    """The storages of the tensors that were made within and are still held: address and bytes."""
    before = _alive()
    gc.freeze()  # what is there already need not be looked through each time
    try:
        yield lambda: {place: size for place, size in _alive().items() if place not in before}
    finally:
        gc.unfreeze()


def _alive() -> dict[int, int]:
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        # isinstance() would ask proxies and lazy modules for their class.
        if issubclass(type(thing), Tensor) and thing.layout is torch.strided and not thing.is_meta:
            storage = thing.untyped_storage()
            with suppress(RuntimeError):  # one of torch.compile's own has a shape and no memory
                found[storage.data_ptr()] = storage.nbytes()
    return found


def run(asked: Asked) -> dict[str, Any]:
    """Measure a run of each predictor, on a model with two streams and on one with one."""
    rows = []
    for name, (_, branches, streams) in MODELS.items():
        model, inputs = (make_model(FLUX), make_inputs(FLUX)) if name == "flux" else make_wan()
        with torch.no_grad():
            model(**inputs[0])  # what the model itself keeps from now on
        for order in (0, 1) if asked.quick else (0, 1, 2):
            seer = {"enable_taylorseer": True, "taylorseer_order": order} if order else {}
            options = {**ALL, "max_warmup_steps": order + 4, "residual_diff_threshold": ALWAYS, **seer}
            kind = f"TaylorSeer {order}" if order else "reuse"
            asked.say(f"{name}, {kind}")
            made: list[Callable[[], Plain]] = [
                partial(Ours, kind, model, inputs, "cache_dit", options, branches)
            ]
            if asked.cache_dit:
                made.append(partial(CacheDiT, kind, model, inputs, "cache_dit", options, branches))
            if asked.first_block and not order:
                made.append(partial(FirstBlock, kind, model, inputs, ALWAYS, branches))
            for make in made:
                with newborn() as held:
                    rows.append({"model": name, **_run(make(), held, streams)})
    return {"rows": rows}


def _run(contender: Plain, held: Callable[[], dict[int, int]], streams: dict[str, int]) -> dict[str, Any]:
    contender.restart(STEPS)
    contender.enter()
    seen: list[dict[int, int]] = []
    with torch.no_grad():
        for _ in range(STEPS):
            contender.step()
            seen.append(held())
    contender.leave()
    contender.finish()
    # Between two steps; the last one is the end of the run.
    most = max(seen[:-1], key=lambda each: sum(each.values()))
    sizes = Counter(most.values())
    branches = len(contender.branches)
    return {
        "kind": contender.kind,
        "who": contender.who,
        "bytes_per_branch": sum(most.values()) / branches,
        **{f"{name}_streams": sizes[size] / branches for name, size in streams.items()},
        "bytes_after": sum(held().values()),
    }


_WORDS = """
The most that is held between two steps of a run of 10, for each branch of guidance, in tensors of the size of each
stream and in bytes, and what is still held when the run is over (of which FirstBlockCache is told, as by a
pipeline). Every tensor of the process is looked for from outside, by the garbage collector; those that were there
before are left out. One image stream is what the first block added, with which the next step is compared; of the
rest, plain reuse needs one, and a TaylorSeer of order n has n + 1 terms.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    heads = ("model", "predictor", "by", "image streams", "text streams", "bytes", "bytes after the run")
    rows = [
        (
            MODELS[row["model"]][0],
            row["kind"],
            row["who"],
            f"{row['image_streams']:g}",
            f"{row['text_streams']:g}",
            f"{row['bytes_per_branch']:.0f}",
            str(row["bytes_after"]),
        )
        for row in found["rows"]
    ]
    return [Part("Memory held, per branch", (_WORDS, Table(heads, rows, 3)))]
