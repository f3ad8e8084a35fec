"""Small records of tiny models, and one of a bare transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dit_cache_backends.calibrate import Record, Series, record
from dit_cache_backends.calibrate.recorder import Recorder, recorded_run
from dit_cache_backends.trials import Prompt, Trial
from dit_cache_conformance.tiny import TINY, Tiny, build

from ..engine.runs import inputs, run_told

STEPS = 10


def prompts_of(name: str, count: int) -> list[Prompt]:
    """Prompts of a tiny pipeline, which takes embeddings: each from a noise of its own."""
    arguments = TINY[name].arguments(1)
    return [Prompt(f"thing number {number}", number, arguments) for number in range(count)]


def recorded(tiny: Tiny, count: int = 3, steps: int = STEPS, **how: Any) -> Record:
    """A record of a tiny pipeline."""
    with Trial(tiny.pipe) as trial:
        return record(trial, prompts_of(tiny.spec.name, count), steps=steps, **how)


def record_of(name: str, count: int = 3, steps: int = STEPS) -> Record:
    """A record of a tiny pipeline that is built for it."""
    return recorded(build(name), count, steps)


def series_of(model: nn.Module, name: str, steps: int, first_blocks: int = 1) -> Series:
    """The series of a bare transformer whose inputs do not depend on what comes out of it."""
    with torch.no_grad(), recorded_run() as (run, found):
        backend = Recorder({"run": run, "first_blocks": first_blocks})
        backend.enable(model)
        run_told(backend, model, inputs(name, steps), "cond")
        backend.disable()
    (series,) = found.values()
    return series
