"""Prints what cache-dit does in each parity case: `python -m tests.parity.table [words in its name]`."""

from __future__ import annotations

import sys
import time

import torch

from .cases import CASES, STEPS
from .reference import cache_dit_run, dense_latents


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    dense: dict[tuple[str, int], torch.Tensor] = {}
    for case in CASES:
        if not all(word in case.id for word in words):
            continue
        key = (case.pipeline, case.batch)
        if key not in dense:
            dense[key] = dense_latents(case.pipeline, STEPS, batch=case.batch)
        start = time.perf_counter()
        run = cache_dit_run(case.pipeline, case.options, STEPS, batch=case.batch)
        seconds = time.perf_counter() - start
        cached = " ".join(
            f"{len(decisions.cached_steps)}/{decisions.steps}" for decisions in run.places.values()
        )
        moved = float((run.latents - dense[key]).abs().max() / dense[key].abs().max())
        print(f"{case.id:45s} {cached:24s} moved {moved:.1e}  {seconds:.2f} s", flush=True)
    print(len(CASES), "cases declared")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:])
