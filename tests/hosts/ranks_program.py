"""Run by torchrun in two processes: the requests of `CASES` on pipelines that share their tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from dit_cache_backends.errors import CancelledGeneration, PlacementError
from dit_cache_backends.hosts.engine import Engine, Generation
from dit_cache_conformance.tiny import build
from tests.hosts.engine_runs import Case, hand_in, latents, request, with_callback

MODELS = ("flux", "qwen_image", "wan")
MEASURED = {"residual_diff_threshold": 0.3, "max_warmup_steps": 2}
CASES = (
    Case(8, 1),
    Case(8, 1, "cache_dit", MEASURED),
    Case(8, 1, "cache_dit", {**MEASURED, "residual_diff_threshold": 0.5, "enable_taylorseer": True}),
    Case(8, 1, "dbprune", {**MEASURED, "Fn_compute_blocks": 1}),
)


def outcome(generation: Generation) -> dict[str, Any]:
    """The latents, and how many blocks each step skipped."""
    output = generation.result(60)
    return {"latents": latents(output), "skipped": [event.blocks_skipped for event in generation.steps()]}


def stopped_by_one(rank: int) -> dict[str, Any]:
    """One process cancels its request behind the second step, the other does not."""
    prompt, params = request("flux", Case(6, 2))
    with Engine(build("flux").pipe, parallelism_config={"ulysses_size": 2}) as engine:

        def stop(step: int) -> None:
            if step == 1 and rank == 0:
                generation.cancel()

        distributed.barrier()
        generation = engine.submit(prompt, with_callback(params, stop))
        try:
            generation.result(60)
            state = "done"
        except CancelledGeneration:
            state = "cancelled"
        after = outcome(hand_in(engine, "flux", CASES[0]))
        return {"state": state, "after": after["latents"]}


def refused(config: dict[str, Any], **more: Any) -> str:
    try:
        Engine(build("flux").pipe, parallelism_config=config, **more)
    except PlacementError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in MODELS:
        with Engine(build(name).pipe, parallelism_config={"ulysses_size": "auto"}) as engine:
            found[name] = [outcome(hand_in(engine, name, case)) for case in CASES]
    rank = distributed.get_rank()
    found["stopped by one"] = stopped_by_one(rank)
    found["refused"] = [
        refused({"ulysses_size": 3}),
        refused({"ulysses_size": 2}, max_concurrent=2),
    ]
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
