"""Runs the DBPrune of the cache-dit library (1.5.3) on a tiny pipeline and records what it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_cache_conformance.tiny import Tiny, build

from .options import CALIBRATOR_KEYS, MASK_KEYS, calibrator_config, mask_arguments
from .reference import Place, as_before, heard, place_of

# The defaults of this project, which the library is told.
DEFAULTS: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "non_prune_block_ids": [],
    "max_warmup_steps": 4,
    "warmup_interval": 1,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 0.08,
    "enable_dynamic_prune_threshold": False,
    "max_dynamic_prune_threshold": None,
    "dynamic_prune_threshold_relax_ratio": 1.25,
    "cfg_compute_first": False,
    "cfg_diff_compute_separate": True,
    "force_refresh_step_hint": None,
    "force_refresh_step_policy": "once",
}


@dataclass
class Pruning:
    """What was decided at one place, by step: the blocks pruned, the blocks there are, the differences in order."""

    pruned: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)
    diffs: dict[int, list[float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return sum(self.pruned.values()) / sum(self.blocks.values())


@dataclass
class Run:
    """One run of a pipeline: its decisions and its final latents."""

    places: dict[Place, Pruning]
    latents: torch.Tensor


def dbprune_arguments(tiny: Tiny, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Arguments for `cache_dit.enable_cache` that mean what `options` mean to this project's `dbprune`.

    Raises:
        KeyError: an option that this table does not know.
    """
    from cache_dit import DBPruneConfig

    for key in options:
        if key not in DEFAULTS and key not in MASK_KEYS and key not in CALIBRATOR_KEYS:
            raise KeyError(key)
    plain = DEFAULTS | {key: value for key, value in options.items() if key in DEFAULTS}
    plain["non_prune_block_ids"] = list(plain["non_prune_block_ids"])
    if plain["force_refresh_step_hint"] is not None:
        # Ours counts steps, the library counts calls of the transformer.
        plain["force_refresh_step_hint"] *= len(tiny.spec.branches)
    calibrator = calibrator_config(options)
    arguments: dict[str, Any] = {"cache_config": DBPruneConfig(**plain, **mask_arguments(options, steps))}
    return arguments if calibrator is None else arguments | {"calibrator_config": calibrator}


def dbprune_run(pipeline: str, options: dict[str, Any], steps: int, **call: Any) -> Run:
    """Run cache-dit's DBPrune with our option names on a new tiny pipeline."""
    import cache_dit

    tiny = build(pipeline)
    arguments = dbprune_arguments(tiny, options, steps)
    with as_before(type(tiny.pipe)):
        cache_dit.enable_cache(tiny.pipe, **arguments)
        with _recorded(tiny) as places:
            latents = tiny.run(steps, **call)
        cache_dit.disable_cache(tiny.pipe)
    return Run(places, latents)


@contextmanager
def _recorded(tiny: Tiny) -> Iterator[dict[Place, Pruning]]:
    from cache_dit.caching.cache_contexts.prune_context import PrunedContext

    places: dict[Place, Pruning] = {}
    where = place_of(tiny)

    def here(context: Any) -> tuple[Pruning, int]:
        place, step = where(context)
        return places.setdefault(place, Pruning()), step

    def compared(context: Any, diff: Any) -> None:
        pruning, step = here(context)
        pruning.diffs.setdefault(step, []).append(float(diff))

    def pruned(context: Any, blocks: int) -> None:
        pruning, step = here(context)
        pruning.pruned[step] = blocks

    def ran(context: Any, blocks: int) -> None:
        pruning, step = here(context)
        pruning.blocks[step] = blocks

    listeners = {"add_residual_diff": compared, "add_pruned_block": pruned, "add_actual_block": ran}
    with heard(PrunedContext, listeners):
        yield places
