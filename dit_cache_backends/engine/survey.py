"""One forward of the model as it is, to see how it calls its blocks before graphs of it are made.

The checks that the engine makes in the first forward of an eager model (which tensor goes where, who writes into what)
need real calls, one block at a time; in a graph nothing of that can be seen. So they are made here, once for a model
and a layout.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_cache_backends.engine.call import Call, Frame
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Decision, Gate, Probe
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.sessions import Session, Slot, SlotKey

if TYPE_CHECKING:
    from dit_cache_backends.engine.attachment import Attachment


def survey(attachment: "Attachment", model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Survey":
    """Call ``model``, to which ``attachment`` is attached, and tell what was seen.

    Raises:
        CardError: if the card does not fit the model.
    """
    seen = Survey(attachment, attachment.argument_of(args, kwargs))
    outer, attachment.local.call = attachment.local.call, seen
    try:
        model.forward(*args, **kwargs)
    finally:
        attachment.local.call = outer
    seen.over()
    return seen


class _Runs(Gate):
    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(True)


class Survey(Call):
    """Runs every block, with the engine's checks, and notes what it sees. What it stores is thrown away with it."""

    __slots__ = ("_last", "_watched", "called", "order", "reason", "writes")

    def __init__(self, frame: Frame, argument: Callable[[str], Any]) -> None:
        super().__init__(frame, Session(), Step(0, None, "survey", 0, None), argument, (), "survey")
        self.order: list[int] = []
        """The numbers of the stacks, as they were called."""
        self.called: dict[int, int] = {}
        """The blocks of each stack that were called, a bit each."""
        self.reason = ""
        """Why the model cannot be compiled as a whole; empty where it can."""
        self.writes = frame.writes_in_place
        """Whether anybody writes into a stream once it has left its block."""
        self._watched: list[tuple[Tensor, Any]] = []
        self._last: list[tuple[Tensor, Any]] = []

    def block(
        self, site: Site, module: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        number, plan = site.plan.number, site.plan
        seen = self.called.get(number, 0)
        if not self.order or self.order[-1] != number:
            if number in self.order:
                self.reason = f"the model goes back to {plan.name} after {self._name_of(self.order[-1])}"
            self.order.append(number)
        if seen >> site.index:
            self.reason = f"the model runs through {plan.name} several times, or not in the order of its card"
        self.called[number] = seen | site.bit
        self._look_back()
        streams = site.read(args, kwargs)
        out = super().block(site, module, run, args, kwargs)
        after = site.streams_from(out, streams)
        spans = plan.spans
        lasting = self._watched if site.index == 0 or site.enters else self._last
        lasting.extend(_noted(streams))
        lasting = self._watched if site.exits or (spans and site.index + 1 == spans[0].start) else self._last
        lasting.extend(_noted(after))
        return out

    def over(self) -> None:
        """The forward is made."""
        self._look_back()
        self.writes = self.writes or any(_written(*pair) for pair in self._watched)
        self._watched.clear()

    def blocks(self, order: list[int]) -> tuple[int, ...]:
        """The blocks of each stack that were called, a bit each."""
        return tuple([self.called.get(number, 0) for number in order])

    def _look_back(self) -> None:
        """A write into what the block before gave or was given, before the next one is called."""
        self.writes = self.writes or any(_written(*pair) for pair in self._last)
        self._last.clear()

    def _new_slot(self, key: SlotKey, plan: StackPlan, number: int) -> Slot:
        strategy = plan.strategy.for_steps(None)
        slot = self._session.slots[key] = Slot(_Runs(), strategy.predictor)
        return slot

    def _name_of(self, number: int) -> str:
        return self._states[number].row.stack


def _noted(streams: tuple[Tensor | None, ...]) -> list[tuple[Tensor, Any]]:
    """Each stream with what tells later whether it was written into: its version, or where it has none a copy."""
    return [
        (stream, stream.clone() if stream.is_inference() else stream._version)
        for stream in streams
        if stream is not None
    ]


def _written(stream: Tensor, noted: Any) -> bool:
    if isinstance(noted, Tensor):
        return not torch.equal(stream.nan_to_num(), noted.nan_to_num())
    return bool(stream._version != noted)
