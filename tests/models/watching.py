"""Runs of whole pipelines, watched from outside, and what a summary has to say about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dit_cache_backends import SpanBackend, enable_cache
from dit_cache_conformance.tiny import Tiny

from ..engine.counting import executed
from ..engine.runs import kinds

STEPS = 6


@dataclass
class Call:
    """One call of a transformer, as it is seen from outside."""

    transformer: str
    time: float
    blocks: int = 0
    """How many of its blocks ran."""


@dataclass
class Seen:
    """What a pipeline did."""

    calls: list[Call] = field(default_factory=list)

    def of(self, transformer: str) -> list[Call]:
        return [call for call in self.calls if call.transformer == transformer]

    def steps(self, tiny: Tiny) -> int:
        """The model evaluations of a run, where every step makes the same calls."""
        assert len(self.calls) % len(tiny.spec.branches) == 0
        return len(self.calls) // len(tiny.spec.branches)


def time_of(kwargs: dict[str, Any], args: tuple[Any, ...]) -> float:
    """EasyAnimate gives it by position, behind the latents."""
    value = next((kwargs[name] for name in ("timestep", "timesteps", "t") if name in kwargs), None)
    if value is None:
        value = args[1]
    return float(value.double().mean()) if isinstance(value, Tensor) else float(value)


@contextmanager
def watched(tiny: Tiny) -> Iterator[Seen]:
    """Every call within, by hooks on the transformers and on a part of each block."""
    seen, hooks, counters = Seen(), [], {}
    for name, model in tiny.transformers.items():
        counters[name] = executed(model)
        ran = counters[name].__enter__()

        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name, ran: Any = ran) -> None:
            ran.take()
            seen.calls.append(Call(name, time_of(kwargs, args)))

        def after(_: nn.Module, args: Any, out: Any, ran: Any = ran) -> None:
            seen.calls[-1].blocks = len(ran.take())

        hooks += [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after),
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for counter in counters.values():
            counter.__exit__(None, None, None)


def a_mask(steps: int) -> list[int]:
    """Runs two steps, skips one, runs one, skips two, and so on."""
    return [int(digit) for digit in ("110100" * steps)[:steps]]


def masked(tiny: Tiny, mask: Sequence[int]) -> SpanBackend:
    backend: Any = enable_cache(
        tiny.pipe,
        "cache_dit",
        Fn_compute_blocks=1,
        steps_computation_mask=list(mask),
        steps_computation_policy="static",
    )
    assert isinstance(backend, SpanBackend)
    return backend


def skips(mask: Sequence[int], step: int) -> bool:
    return mask[step] == 0


def check_run(tiny: Tiny, seen: Seen, backend: SpanBackend, mask: Sequence[int]) -> None:
    """What the summary says against what was seen, for a pipeline whose steps are all alike."""
    branches, summary = tiny.spec.branches, backend.summary()
    depth, stacks = sum(tiny.spec.stacks.values()), len(tiny.spec.stacks)
    total = seen.steps(tiny)
    assert total == len(mask)
    for number, call in enumerate(seen.calls):
        step = number // len(branches)
        assert call.blocks == (stacks if skips(mask, step) else depth), (number, step)
    cached = [step for step in range(total) if skips(mask, step)]
    assert cached
    assert {branch for _, branch, _ in summary.series()} == set(branches)
    for transformer, branch, stack in summary.series():
        rows = [
            row
            for row in summary.rows
            if (row.transformer, row.branch, row.stack) == (transformer, branch, stack)
        ]
        assert [row.step for row in rows] == list(range(total))
        assert {row.total for row in rows} == {total}
        assert summary.cached_steps(transformer, branch, stack) == cached
    assert {stack for _, _, stack in summary.series()} == set(tiny.spec.stacks)
    assert summary.blocks_run == sum(call.blocks for call in seen.calls)
    assert "mask_length" not in kinds(backend)


def plain(tiny: Tiny, **more: Any) -> tuple[Tensor, Seen]:
    with watched(tiny) as seen:
        return tiny.run(**({"num_inference_steps": STEPS} | more)), seen
