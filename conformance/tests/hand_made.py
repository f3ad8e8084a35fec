"""A backend without the engine of dit_cache_backends: the suite looks at what comes out, not at how it is made."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from dit_cache_backends import (
    AlreadyEnabledError,
    CacheBackend,
    Capabilities,
    Card,
    Row,
    Summary,
    list_cards,
    option,
)

STREAMS = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True)
class EveryConfig:
    every: int = option(3, minimum=1, help="Run every so many steps, and skip those between.")


class HandMade(CacheBackend):
    """Runs every third step and adds what its blocks added then; replaces each block's forward.

    Exact, and simple enough to miss where a run begins: after one that was cancelled in its first step, the time is the
    same as before.
    """

    name = "hand_made"
    Config = EveryConfig
    capabilities = Capabilities(interleaved_requests=False)
    conformance: ClassVar[Any] = {"eager": {"every": 3}, "never": {"every": 1}}
    caught_by: ClassVar[str] = "a_run_after_a_cancelled_one_is_fresh"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.runs: dict[nn.Module, Running] = {}

    def enable(self, pipeline: Any) -> None:
        found = {name: getattr(pipeline, name, None) for name in ("transformer", "transformer_2")}
        modules = {name: each for name, each in found.items() if isinstance(each, nn.Module)}
        for name, module in (modules or {"transformer": pipeline}).items():
            if any(hasattr(block, "_hand_made") for block in module.modules()):
                raise AlreadyEnabledError("enabled already; call disable first")
            self.runs[module] = self.running(module, name, pipeline)

    def running(self, module: nn.Module, name: str, pipeline: Any) -> Running:
        return Running(module, name, pipeline, self.config.every)

    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        for run in self.runs.values():
            run.forget()

    def disable(self, pipeline: Any = None) -> None:
        while self.runs:
            self.runs.popitem()[1].take_off()

    def is_enabled(self) -> bool:
        return bool(self.runs)

    def summary(self, key: Hashable = None) -> Summary:
        found = Summary()
        found.rows = [row for run in self.runs.values() for row in run.rows]
        return found


class Running:
    """One transformer, its blocks replaced."""

    def __init__(self, module: nn.Module, name: str, pipeline: Any, every: int) -> None:
        self.name, self.pipeline, self.every = name, pipeline, every
        card: Card = next(each for each in list_cards() if each.transformer == type(module).__name__)
        self.blocks: list[Any] = []
        self.gives: list[Any] = []
        for blocks in card.stacks[0].lists:
            listed: Any = module.get_submodule(blocks.path)
            self.blocks += listed
            self.gives += [blocks.gives] * len(listed)
        for number, block in enumerate(self.blocks):
            block.__dict__["forward"] = partial(self.call, number, block.forward)
            block.__dict__["_hand_made"] = True
        self.hook = module.register_forward_pre_hook(self.begin, with_kwargs=True)
        self.forget()

    def take_off(self) -> None:
        self.hook.remove()
        for block in self.blocks:
            del block.__dict__["forward"], block.__dict__["_hand_made"]

    def forget(self) -> None:
        self.time: float | None = None
        self.step, self.branch, self.ran_at = -1, 0, 0
        self.stored: dict[Any, Any] = {}
        self.rows: list[Row] = []

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        time = float(kwargs["timestep"].float().mean())
        if self.time is not None and time > self.time:
            self.forget()
        if time != self.time:
            self.step, self.branch, self.time = self.step + 1, 0, time
        else:
            self.branch += 1
        self.skips = self.skip()
        self.rows.append(Row(self.name, "blocks", str(self.branch), self.step, None))

    def skip(self) -> bool:
        return self.step % self.every != 0 and self.branch in self.stored

    def call(self, number: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        streams = dict(zip(STREAMS, args, strict=False)) | {
            name: kwargs[name] for name in STREAMS if name in kwargs
        }
        if number == 0:
            self.entry: dict[str, Any] = streams
        if self.skips:
            self.rows[-1].blocks_skipped += 1
            return self.give(number, self.skipped(number, streams))
        self.rows[-1].blocks_run += 1
        out = forward(*args, **kwargs)
        if number == len(self.blocks) - 1:
            after = dict(zip(self.names(number), (out,) if isinstance(out, Tensor) else out, strict=True))
            self.stored[self.branch] = {
                name: None if value is None else value - self.entry[name] for name, value in after.items()
            }
        return out

    def skipped(self, number: int, streams: dict[str, Any]) -> dict[str, Any]:
        if number != len(self.blocks) - 1:
            return streams
        return self.sums()

    def sums(self) -> dict[str, Any]:
        return {
            name: None if added is None else self.entry[name] + added
            for name, added in self.stored[self.branch].items()
        }

    def names(self, number: int) -> tuple[str, ...]:
        gives = self.gives[number]
        return (gives,) if isinstance(gives, str) else gives

    def give(self, number: int, streams: dict[str, Any]) -> Any:
        if isinstance(self.gives[number], str):
            return streams[self.gives[number]]
        return tuple(streams.get(name) for name in self.gives[number])


class FillsAtTheEntry(HandMade):
    """Adds the residual at the first block of the span: what the model adds between the blocks comes on top."""

    caught_by = "what_a_model_adds_between_its_blocks_survives"

    def running(self, module: nn.Module, name: str, pipeline: Any) -> Running:
        return _Filling(module, name, pipeline, self.config.every)


class _Filling(Running):
    def skipped(self, number: int, streams: dict[str, Any]) -> dict[str, Any]:
        return self.sums() if number == 0 else streams


class SkipsTheFirstStep(HandMade):
    """Begins with what is at hand: nothing."""

    caught_by = "the_first_step_runs"

    def running(self, module: nn.Module, name: str, pipeline: Any) -> Running:
        return _FromNothing(module, name, pipeline, self.config.every)


class _FromNothing(Running):
    def skip(self) -> bool:
        return self.every > 1 and self.step % self.every != 1

    def skipped(self, number: int, streams: dict[str, Any]) -> dict[str, Any]:
        return super().skipped(number, streams) if self.branch in self.stored else streams


class WrongDtype(HandMade):
    """Keeps what it adds in single precision, and adds it in that."""

    caught_by = "half_precision_is_kept"

    def running(self, module: nn.Module, name: str, pipeline: Any) -> Running:
        return _InSingle(module, name, pipeline, self.config.every)


class _InSingle(Running):
    def skipped(self, number: int, streams: dict[str, Any]) -> dict[str, Any]:
        found = super().skipped(number, streams)
        return (
            found
            if found is streams
            else {name: each.float() for name, each in found.items() if each is not None}
        )
