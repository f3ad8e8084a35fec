"""The tiny models as the checks use them: whole pipelines, and bare transformers driven step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends import CacheBackend
from dit_cache_conformance.counting import TransformerCall, counted
from dit_cache_conformance.tiny import TINY, Tiny, build, build_transformer, transformer_inputs

PIPELINES = ("flux", "flux_controlnet", "qwen_image", "sd3", "wan22", "cogvideox", "dit")
"""Two lists as one stack; residuals added between blocks; guidance in two calls; guidance in one call; two experts;
a scheduler without a step index; class labels."""
BARE = ("flux", "flux_controlled", "qwen_image", "sd3", "wan", "cogvideox", "dit")
"""Their transformers by themselves."""
ANY = tuple(dict.fromkeys((*PIPELINES, *BARE, "hunyuan_video", "chroma")))
"""All that any check is tried on."""
_FLUX = {"num_layers": 2, "num_single_layers": 4}
DEPTHS = {"flux": _FLUX, "flux_controlnet": _FLUX, "flux_controlled": _FLUX}
DEPTHS |= {name: {"num_layers": 6} for name in ("sd3", "dit")}
"""No stack has more than the six blocks that the least has: more would find nothing else, and take longer."""
STEPS = 8
"""Of a run: each of two experts makes some of them, and a backend can warm up and still skip."""
STILL = 2e-5
"""How far a still input may be off, relative to the largest number: what sums in another order may cost in float32."""
SIZES: dict[str, Any] = {"height": 32, "width": 96}
"""Another resolution than the tiny pipelines' own."""


@dataclass(frozen=True)
class Ran:
    """A run of a pipeline."""

    latents: Tensor
    calls: Sequence[TransformerCall]
    """The calls that reached a transformer, with the blocks that ran in each."""
    outputs: Sequence[Tensor] = ()
    """What the transformers gave, call by call, where that was looked at."""

    @property
    def blocks(self) -> int:
        """How many blocks ran."""
        return sum(len(call.blocks) for call in self.calls)

    @property
    def decisions(self) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
        """What ran, call by call."""
        return [(call.transformer, tuple(call.blocks)) for call in self.calls]


def calls_per_step(name: str) -> int:
    """How often the transformer of that pipeline is called in a step."""
    return len(TINY[name].branches)


class Stage:
    """One built pipeline."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tiny: Tiny = build(name, **DEPTHS.get(name, {}))
        self.pipe: Any = self._tiny.pipe

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """Its transformers by name."""
        return self._tiny.transformers

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
    def outputs(self) -> Iterator[list[Tensor]]:
        """What the transformers give within, call by call."""
        found: list[Tensor] = []
        hooks = [
            transformer.register_forward_hook(lambda *of: found.append(of[-1][0].clone()))
            for transformer in self.transformers.values()
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

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
                return first.setdefault(next(count) % calls_per_step(self.name), (args, kwargs))

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


class Bare:
    """One transformer, called step by step by the check itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = build_transformer(name, **DEPTHS.get(name, {}))

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
