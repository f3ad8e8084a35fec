"""The tiny models as the checks use them: whole pipelines, and bare transformers driven step by step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_cache_backends import CacheBackend
from dit_cache_conformance.counting import TransformerCall, counted
from dit_cache_conformance.tiny import Tiny, build, build_transformer, transformer_inputs

if TYPE_CHECKING:
    from dit_cache_conformance.subject import Subject

PIPELINES = ("flux", "flux_controlnet", "qwen_image", "sd3", "wan22", "cogvideox", "dit")
"""Two lists as one stack; residuals added between blocks; guidance in two calls; guidance in one call; two experts;
a scheduler without a step index; class labels."""
BARE = ("flux", "flux_controlled", "qwen_image", "sd3", "wan", "cogvideox", "dit")
"""Their transformers by themselves."""
STEPS = 8
"""Of a run: each of two experts makes some of them, and a backend can warm up and still skip."""
STILL = 2e-5
"""How far a still input may be off, relative to the largest number: what sums in another order may cost in float32."""
SIZES = {"height": 32, "width": 96}
"""Another resolution than the tiny pipelines' own."""


@dataclass(frozen=True)
class Ran:
    """A run of a pipeline."""

    latents: Tensor
    calls: Sequence[TransformerCall]
    """The calls that reached a transformer, with the blocks that ran in each."""

    @property
    def blocks(self) -> int:
        """How many blocks ran."""
        return sum(len(call.blocks) for call in self.calls)

    @property
    def decisions(self) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
        """What ran, call by call."""
        return [(call.transformer, tuple(call.blocks)) for call in self.calls]


class Stage:
    """One built pipeline."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tiny: Tiny = build(name)
        self.pipe: Any = self._tiny.pipe

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """Its transformers by name."""
        return self._tiny.transformers

    @property
    def calls_per_step(self) -> int:
        """How often its transformer is called in a step."""
        return len(self._tiny.spec.branches)

    @property
    def arguments(self) -> dict[str, Any]:
        """What it is called with for one sample, but for steps and seed."""
        return self._tiny.spec.arguments(1)

    def run(self, steps: int = STEPS, seed: int = 0, batch: int = 1, **more: Any) -> Ran:
        """Run it from noise to the final latents, in the transformer's dtype, and count what runs."""
        dtype = next(next(iter(self.transformers.values())).parameters()).dtype
        if dtype is not torch.float32:
            given = self._tiny.spec.arguments(batch).items()
            more = {key: value.to(dtype) for key, value in given if _is_floating(value)} | more
        with counted(self.transformers) as counter:
            latents = self._tiny.run(steps, seed, batch, **more)
        return Ran(latents, counter.calls)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every step within sees what the first one saw: the same latents, time and control."""
        hooks = []
        for transformer in self.transformers.values():
            first: dict[int, tuple[Any, Any]] = {}
            count = iter(range(1_000_000))

            def freeze(
                module: Any,
                args: Any,
                kwargs: Any,
                first: dict[int, tuple[Any, Any]] = first,
                count: Iterator[int] = count,
            ) -> Any:
                return first.setdefault(next(count) % self.calls_per_step, (args, kwargs))

            hooks.append(transformer.register_forward_pre_hook(freeze, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def broken_off(self, after: int, error: type[BaseException], inside: bool, seed: int = 0) -> None:
        """Begin a run in which ``error`` is raised: inside a block of call ``after``, or after so many steps."""
        with self._raising_inside(after, error) if inside else self._raising_between(after, error):
            try:
                self.run(seed=seed)
            except error:
                return
        raise AssertionError("the run was not broken off")

    @contextmanager
    def _raising_between(self, after: int, error: type[BaseException]) -> Iterator[None]:
        scheduler = self.pipe.scheduler
        step, steps = scheduler.step, iter(range(1_000_000))

        def stop(*args: Any, **kwargs: Any) -> Any:
            if next(steps) >= after:
                raise error
            return step(*args, **kwargs)

        scheduler.step = stop
        try:
            yield
        finally:
            del scheduler.step

    @contextmanager
    def _raising_inside(self, after: int, error: type[BaseException]) -> Iterator[None]:
        """At the end of a transformer's forward, when its blocks have run or were skipped."""
        calls = iter(range(1_000_000))

        def fail(*_: object) -> None:
            if next(calls) >= after:
                raise error

        hooks = [
            last.register_forward_pre_hook(fail)
            for transformer in self.transformers.values()
            for name, last in transformer.named_children()
            if name in ("norm_out", "norm_final", "proj_out", "proj_out_2")
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@functools.cache
def _plain(name: str, frozen: bool, dtype: torch.dtype, arguments: tuple[tuple[str, Any], ...]) -> Ran:
    stage = Stage(name)
    stage.pipe.to(dtype=dtype)
    with stage.frozen() if frozen else nullcontext():
        return stage.run(**dict(arguments))


def plain(name: str, frozen: bool = False, dtype: torch.dtype = torch.float32, **arguments: Any) -> Ran:
    """A run without any cache; worked out once."""
    return _plain(name, frozen, dtype, tuple(sorted(arguments.items())))


def fresh(subject: Subject, name: str, **arguments: Any) -> Ran:
    """A run on a new pipeline with a new eager backend; worked out once."""
    key = (subject.cls, repr(sorted(subject.eager.items())), name, *sorted(arguments.items()))
    if key not in _FRESH:
        stage, backend = Stage(name), subject.eagerly()
        backend.enable(stage.pipe)
        try:
            _FRESH[key] = stage.run(**arguments)
        finally:
            backend.disable(stage.pipe)
    return _FRESH[key]


_FRESH: dict[Any, Ran] = {}


class Bare:
    """One transformer, called step by step by the check itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = build_transformer(name)

    def call(self, arguments: Mapping[str, Any], branch: str = "cond") -> Tensor:
        """Call it, on that branch if its class lets a host say so."""
        context = getattr(self.model, "cache_context", None)
        with context(branch) if context is not None else nullcontext():
            sample = self.model(**arguments)[0]
        return sample if isinstance(sample, Tensor) else torch.stack(list(sample))

    def run(
        self, branches: Mapping[str, Sequence[Mapping[str, Any]]], backend: CacheBackend | None = None
    ) -> dict[str, list[Tensor]]:
        """All steps of a generation, each with a call for every branch; the backend is told that it begins."""
        steps = len(next(iter(branches.values())))
        if backend is not None:
            backend.refresh(self.model, steps)
        found: dict[str, list[Tensor]] = {branch: [] for branch in branches}
        for step in range(steps):
            for branch, arguments in branches.items():
                found[branch].append(self.call(arguments[step], branch))
        return found


def inputs(name: str, seed: int = 0, steps: int = STEPS, batch: int = 1, **more: Any) -> list[dict[str, Any]]:
    """The arguments of every step of a run of a bare transformer."""
    return [
        transformer_inputs(name, seed=seed, step=step, total=steps, batch=batch, **more)
        for step in range(steps)
    ]


def bare_alone(
    name: str, make: Callable[[], CacheBackend], run: Sequence[Mapping[str, Any]], branch: str = "cond"
) -> list[Tensor]:
    """A generation of one branch on a new transformer with a new backend."""
    bare, backend = Bare(name), make()
    backend.enable(bare.model)
    try:
        return bare.run({branch: run}, backend)[branch]
    finally:
        backend.disable(bare.model)
