"""Runs that several checks look at, each made once: without a cache, on what is new, and one after the other."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from dit_cache_backends import CacheBackend
from dit_cache_conformance.stage import STEPS, Bare, Ran, Stage, inputs

if TYPE_CHECKING:
    from dit_cache_conformance.subject import Subject

T = TypeVar("T")
_SKIPPING_SEEDS = (0, 0, 1, 2, 1)
_NEVER_SEEDS = (0, 1)


@functools.cache
def _plain(name: str, frozen: bool, dtype: torch.dtype, arguments: tuple[tuple[str, Any], ...]) -> Ran:
    stage = Stage(name)
    stage.pipe.to(dtype=dtype)
    with stage.frozen() if frozen else nullcontext():
        return _watched(stage, **dict(arguments))


def plain(name: str, frozen: bool = False, dtype: torch.dtype = torch.float32, **arguments: Any) -> Ran:
    """A run without any cache."""
    return _plain(name, frozen, dtype, tuple(sorted(arguments.items())))


def fresh(
    subject: Subject, name: str, *, never: bool = False, dtype: torch.dtype = torch.float32, **arguments: Any
) -> Ran:
    """A run on a new pipeline with a new backend that skips, or that never does."""

    def make() -> Ran:
        stage, backend = Stage(name), subject.never_skipping() if never else subject.eagerly()
        stage.pipe.to(dtype=dtype)
        backend.enable(stage.pipe)
        try:
            return _watched(stage, **arguments)
        finally:
            backend.disable(stage.pipe)

    if not arguments and dtype is torch.float32:
        return course(subject, name, never).run(0)
    return once(subject, (name, never, dtype, *sorted(arguments.items())), make)


def alone(
    subject: Subject, name: str, seed: int = 0, steps: int = STEPS, branch: str = "cond"
) -> list[Tensor]:
    """A generation of one branch on a new bare transformer with a new backend that skips."""
    return once(
        subject,
        (name, seed, steps, branch),
        lambda: bare_alone(name, subject.eagerly, inputs(name, seed=seed, steps=steps), branch),
    )


def bare_alone(
    name: str, make: Callable[[], CacheBackend], run: Sequence[Mapping[str, Any]], branch: str = "cond"
) -> list[Tensor]:
    """A generation of one branch, with inputs of its own, on a new bare transformer with a new backend."""
    bare, backend = Bare(name), make()
    backend.enable(bare.model)
    try:
        return bare.run({branch: run}, backend)[branch]
    finally:
        backend.disable(bare.model)


@dataclass(frozen=True)
class Told:
    """What a backend told of a run when it was over."""

    blocks_run: int
    blocks_skipped: int
    steps: Mapping[tuple[str, str, str], Sequence[int]]
    """The steps by transformer, branch and stack, in the order of the rows."""
    events: frozenset[str]
    """The kinds of the events."""


@dataclass
class Course:
    """Runs on one new pipeline with one new backend, one after the other, as they were seen from outside."""

    seeds: Sequence[int]
    runs: list[Ran] = field(default_factory=list)
    told: list[Told | Exception] = field(default_factory=list)
    error: Exception | None = None
    """What broke a run off, if anything did."""
    drew: str = ""
    """Whose random state had moved when all was over."""

    def run(self, number: int) -> Ran:
        """One of the runs; raises what was raised in it, or before it."""
        if number >= len(self.runs) and self.error is not None:
            raise self.error
        return self.runs[number]

    def summary(self, number: int) -> Told:
        """What was told of it; raises what was raised instead."""
        self.run(number)
        told = self.told[number]
        if isinstance(told, Exception):
            raise told
        return told


def course(subject: Subject, name: str, never: bool = False) -> Course:
    """The runs of a backend that skips, of seeds 0, 0, 1, 2, 1; or of one that never does, of seeds 0, 1."""
    return once(subject, (name, never, "course"), lambda: _course(subject, name, never))


def _course(subject: Subject, name: str, never: bool) -> Course:
    found = Course(_NEVER_SEEDS if never else _SKIPPING_SEEDS)
    stage, backend = Stage(name), subject.never_skipping() if never else subject.eagerly()
    states = torch.get_rng_state(), random.getstate()
    try:
        backend.enable(stage.pipe)
        for seed in found.seeds:
            found.runs.append(_watched(stage, seed=seed))
            found.told.append(_told(backend))
        backend.disable(stage.pipe)
    except Exception as error:  # is raised in each check that looks at a run which was not made
        found.error = error
    if not torch.equal(torch.get_rng_state(), states[0]):
        found.drew = "torch"
    elif random.getstate() != states[1]:
        found.drew = "Python"
    return found


def _watched(stage: Stage, **arguments: Any) -> Ran:
    with stage.outputs() as outputs:
        ran = stage.run(**arguments)
    return Ran(ran.latents, ran.calls, outputs)


def _told(backend: CacheBackend) -> Told | Exception:
    steps: dict[tuple[str, str, str], list[int]] = {}
    try:
        summary = backend.summary()
        for row in summary.rows:
            steps.setdefault((row.transformer, row.branch, row.stack), []).append(row.step)
        kinds = frozenset(event.kind for event in summary.events)
        return Told(summary.blocks_run, summary.blocks_skipped, steps, kinds)
    except Exception as error:  # a summary that cannot be made is a matter of the checks of summaries alone
        return error


def once(subject: Subject, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """What ``make`` makes, the first time that it is asked for with this backend and this key."""
    whole = (subject.cls, repr(sorted(subject.eager.items())), repr(sorted(subject.never.items())), *key)
    if whole not in _MADE:
        _MADE[whole] = make()
    found: T = _MADE[whole]
    return found


_MADE: dict[Any, Any] = {}
