"""The rows that ``gpu.py`` measures of a model, and how each is driven."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from gpu_models import Case, twin

from dit_cache_backends import enable_cache
from dit_cache_backends.strategies.scm import POLICIES, policy_mask

OURS, PEER = "dit-cache-backends", "cache-dit"
KINDS = {"": "", "blocks": ", blocks compiled", "whole": ", compiled whole"}
"""What torch.compile is given, and how it stands in a row's name."""
TAYLOR = " + TaylorSeer"
ONLY_OURS = ("dbprune", "tea_cache")
"""Strategies in which the peer makes no row: it has no TeaCache, and what its DBPrune ran is told as a count alone."""


@dataclass(frozen=True)
class Row:
    """One way to make the image."""

    name: str
    steps: int
    library: str = ""
    """Whose cache; empty for the dense model."""
    strategy: str = ""
    """A policy of step masks, then static, or a backend."""
    taylor: bool = False
    compiled: str = ""


def rows_of(steps: int) -> list[Row]:
    """Every row for runs of ``steps`` steps: the dense one first, and the peer's right behind ours."""
    rows: list[Row] = []

    def pair(strategy: str, taylor: bool, compiled: str) -> None:
        name = f"static {strategy}" if strategy in POLICIES else strategy
        name += (TAYLOR if taylor else "") + KINDS[compiled]
        rows.append(Row(name, steps, OURS, strategy, taylor, compiled))
        if strategy not in ONLY_OURS:
            rows.append(Row(f"cache-dit {name}", steps, PEER, strategy, taylor, compiled))

    for compiled, suffix in KINDS.items():
        # Compiled whole, every cache takes minutes to compile anew, and the masks differ in nothing but how often what.
        policies = ("fast",) if compiled == "whole" else POLICIES
        rows.append(Row(f"dense{suffix}", steps, compiled=compiled))
        for policy in policies:
            pair(policy, False, compiled)
        for policy in ("fast",) if compiled else policies:
            pair(policy, True, compiled)
        pair("dbcache", False, compiled)
        if not compiled:
            for strategy in ONLY_OURS:
                pair(strategy, False, compiled)
            fewer = dict.fromkeys(sum(policy_mask(policy, steps)) for policy in POLICIES)
            rows += [Row(f"dense with {count} steps", count) for count in fewer]
    return rows


class Plain:
    """The dense model, on a module of its own over the same weights."""

    def __init__(self, row: Row, case: Case, model: Any) -> None:
        self.row, self.case = row, case
        self.model = twin(model)
        self.attach()
        compiler: dict[str, Any] = {"backend": "inductor" if case.device.type == "cuda" else "eager"}
        if row.compiled == "blocks":
            # What compile_repeated_blocks does, also for a class that does not name its blocks (DiT's).
            if getattr(self.model, "_repeated_blocks", None):
                self.model.compile_repeated_blocks(fullgraph=True, **compiler)
            else:
                for block in case.blocks(self.model):
                    block.compile(fullgraph=True, **compiler)
        elif row.compiled == "whole":
            # cache-dit breaks the graph by design; with fullgraph=True it would only raise.
            self.model.compile(fullgraph=row.library != PEER, **compiler)

    def attach(self) -> None:
        """Put the cache on the model."""

    def begin(self) -> None:
        """Right before a run."""

    def around(self, index: int, steps: int, branch: str) -> AbstractContextManager[Any]:
        """What each call of the transformer is made within."""
        return nullcontext()

    def skipped(self) -> list[Sequence[int]]:
        """The blocks that each call of the last run skipped, by their numbers."""
        return [()] * (self.row.steps * len(self.case.branches))

    def free(self) -> None:
        """Let go of what the last run left behind."""


class Ours(Plain):
    """A backend of this package on the bare transformer, told its steps as a host does."""

    def attach(self) -> None:
        options: dict[str, Any] = {}
        name = self.row.strategy
        if name in POLICIES:
            options = {"scm_steps_mask_policy": name, "scm_steps_policy": "static"}
        if self.row.taylor:
            options |= {"calibrator": "taylorseer", "taylorseer_order": 1}
        if name == "tea_cache" and self.case.coefficients is not None:
            options = {"coefficients": self.case.coefficients}
        backend = name if name in ONLY_OURS else "cache_dit"
        self.backend: Any = enable_cache(self.model, backend, **options)

    def around(self, index: int, steps: int, branch: str) -> AbstractContextManager[Any]:
        told: AbstractContextManager[Any] = self.backend.step(index, steps, branch)
        return told

    def skipped(self) -> list[Sequence[int]]:
        return [tuple(row.skipped) for row in self.backend.summary().rows]


class Peer(Plain):
    """cache-dit on the bare transformer, with the options that ours has in the row of that name."""

    def attach(self) -> None:
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
        import cache_dit

        steps, policy = self.row.steps, self.row.strategy
        masked: dict[str, Any] = {}
        if policy in POLICIES:
            mask = list(policy_mask(policy, steps))
            masked = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=4,
            max_continuous_cached_steps=3,
            residual_diff_threshold=0.24,
            num_inference_steps=steps,
            **masked,
        )
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if self.row.taylor else None
        cache_dit.enable_cache(self.model, cache_config=config, calibrator_config=calibrator)

    def begin(self) -> None:
        import cache_dit

        # Without it a second run would begin in the first one's contexts.
        cache_dit.refresh_context(self.model, num_inference_steps=self.row.steps)

    def free(self) -> None:
        self.begin()

    def skipped(self) -> list[Sequence[int]]:
        import cache_dit

        told = cache_dit.summary(self.model, logging=False)[-1]
        cached = {"cond": told.cached_steps, "uncond": told.cfg_cached_steps}
        rest, none = range(1, self.case.depth), range(0)
        return [
            rest if step in cached[branch] else none
            for step in range(self.row.steps)
            for branch in self.case.branches
        ]


DRIVERS: dict[str, type[Plain]] = {"": Plain, OURS: Ours, PEER: Peer}
