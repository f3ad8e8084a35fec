"""A stack in one forward of a transformer that is compiled as a whole: which way its next graph goes through it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.compiled_blocks import Track
from dit_cache_backends.engine.gates import Decision, Gate, Probe
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.residuals import ABSENT, SAME, SUM
from dit_cache_backends.engine.sessions import Signature, Slot
from dit_cache_backends.engine.visit import StackState, Visit


class _Looked(BaseException):
    """A gate asked for what is not there yet. No Exception, so that no gate takes it for a fault of its own."""


class Blind(Probe):
    """A probe without tensors: a gate that answers without a look at any is known to.

    Where such a gate is told of the step and looks after all, they are found for it.
    """

    __slots__ = ("_find",)

    def __init__(self, argument: Callable[[str], Any]) -> None:
        self.argument = argument
        self._notes, self.measured, self._look_ahead, self._change = None, None, None, None
        self._find: Callable[[], Probe] | None = None

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not set.
        if self._find is None:
            raise _Looked
        found = self._find()
        self.entry, self.streams = found.entry, found.streams
        self.args, self.kwargs = found.args, found.kwargs
        return object.__getattribute__(self, name)

    def tell(self, gate: Gate, step: Step, decision: Decision, block: Any, find: Callable[[], Probe]) -> None:
        """Tell ``gate`` of a skipped step; while it is told ``find`` gives what it looks at."""
        self.block, self.exit, self._find = block, None, find
        try:
            gate.observe(step, self, decision)
        finally:
            self._find = _gone


def _gone() -> Probe:
    raise RuntimeError(
        "A gate looked at the tensors of a probe when the call that the probe was for was over. Look at them in "
        "`should_run` or `observe`, and keep what is needed later."
    )


@dataclass(slots=True)
class Stand:
    """How things stand with a stack in this forward."""

    number: int
    state: StackState
    track: Track
    enters: Site | None
    """The block that its span begins with, and the one that it ends with; None without a span."""
    exits: Site | None
    slot: Slot | None
    mode: str = "dense"
    visit: Visit | None = None
    probe: Any = None
    """What its gate was asked with."""
    called: int = 0

    def lost(self) -> bool:
        """Whether the end of a span that ran was called, and what it gave did not come out of the graph."""
        track, exits = self.track, self.exits
        if exits is None or track.entered is None or self.mode not in ("dense", "run"):
            return False
        return track.exit is None and bool(track.called & exits.bit)

    def guess(self, step: Step, argument: Callable[[str], Any], before: str, looks: bool) -> str:
        """A way for a span that could be skipped.

        ``before`` is the way of the stack before. ``looks``: its gate is known to look at the tensors of every step.
        """
        if self.slot is None:
            return "dense"
        if before == "probe":
            return "probe"  # Its gate may follow that of the stack before, which is not decided yet.
        decision = blindly(self.slot.gate, step, Blind(argument))
        if decision is None:
            return "probe"
        if decision.run:
            return "probe" if before == "skip" else "dense"
        return "probe" if looks else "skip"


def blindly(gate: Gate, step: Step, probe: Blind) -> Decision | None:
    """What ``gate`` answers without a look at any tensor; None where it has to be asked with them."""
    try:
        decision = gate.should_run(step, probe)
    except _Looked:
        return None
    known = decision.run or decision.difference is None or math.isfinite(decision.difference)
    return decision if known else None


def predict(track: Track, slot: Slot, step: Step) -> None:
    """Put into ``track`` what a skipped span hands out."""
    kinds: list[str] = []
    values: list[Tensor | None] = []
    for kind, predictor in zip(slot.kinds, slot.predictors, strict=True):
        if kind == SUM and predictor is not None:
            kinds.append("output" if predictor.of == "output" else SUM)
            values.append(predictor.predict(step))
        else:
            kinds.append(kind if kind == ABSENT else SAME)
            values.append(None)
    track.kinds, track.values, track.dtypes = tuple(kinds), tuple(values), slot.dtypes


def signature_of(forms: tuple[Tensor | None, ...]) -> Signature:
    """``signature`` of streams, from the empty tensors that stand for them (``compiled_blocks.forms``)."""
    return tuple([None if form is None else (form.shape[1:], form.dtype, form.device) for form in forms])
