"""One forward of a transformer that is compiled as a whole: decisions between graphs, none within.

A skipped step is one graph, a computed one too if that is known before any tensor is seen; else a first graph skips and
shows what the gate looks at, and a second one runs the span. With several stacks it is up to one more for each.
``compiled_blocks`` has the ways through the blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dit_cache_backends.engine.call import Call, Frame
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.compiled_blocks import Track
from dit_cache_backends.engine.gates import Probe
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.residuals import ABSENT, SAME, SUM, store
from dit_cache_backends.engine.sessions import Session, Slot, SlotKey
from dit_cache_backends.engine.visit import StackState, Visit
from dit_cache_backends.errors import CompileError

if TYPE_CHECKING:
    from dit_cache_backends.engine.graphs import Region


_TWICE = (
    "{name}: the model ran through one of its stacks several times in a forward, and did not do so when it was first "
    "called. Such a model cannot be compiled as a whole with a cache backend enabled: compile its blocks instead, "
    "with transformer.compile_repeated_blocks(...)."
)


class _Looked(BaseException):
    """A gate asked for what is not there yet. No Exception, so that no gate takes it for a fault of its own."""


class NotesLost(Exception):
    """What the traced blocks noted did not come out of the graph."""


class _Blind(Probe):
    """A probe before the forward: a gate that answers without a look at any tensor is known to."""

    __slots__ = ()

    def __init__(self, argument: Callable[[str], Any]) -> None:
        self.argument = argument
        self._notes, self.measured, self._look_ahead = None, None, None

    def __getattr__(self, name: str) -> Any:
        raise _Looked

    @property
    def change(self) -> Tensor:
        raise _Looked


@dataclass(slots=True)
class _Stand:
    """A stack in this forward."""

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


class WholeCall(Call):
    """Makes one forward in graphs, and keeps the engine's books beside them."""

    __slots__ = ("_fits", "_region", "_retired", "_stands", "_whole")

    def __init__(
        self,
        frame: Frame,
        session: Session,
        step: Step,
        argument: Callable[[str], Any],
        region: "Region",
        forced: str = "",
        retired: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(frame, session, step, argument, (), forced)
        self._region = region
        self._whole = region.whole
        self._retired = retired
        """Of a branch where nothing will be skipped any more: why, by the number of the stack."""
        self._stands: list[_Stand] = []
        self._fits = True
        """Nothing speaks against skipping what is known to be skipped."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the transformer's own ``__call__``."""
        graphs = self._region.graphs
        with graphs.running():
            self._stands = [self._stand(number) for number in graphs.order]
            settled = 0
            while True:
                self._choose(settled)
                out = None
                try:
                    out = self._region.graph([stand.mode for stand in self._stands], args, kwargs)
                except RuntimeError:
                    if not self._give_up(settled):
                        raise
                    continue
                self._check_notes(args, kwargs)
                while settled < len(self._stands) and self._settle(self._stands[settled]):
                    settled += 1
                if settled == len(self._stands):
                    return out
                for stand in self._stands[:settled]:
                    stand.mode = "replay"

    def _give_up(self, settled: int) -> bool:
        """After an error: whether streams may have come in that do not fit what was predicted. Then nothing is skipped.

        Their shapes may depend on what is in the arguments. In a dense graph that is seen, or the error comes again.
        """
        guessed = [stand for stand in self._stands[settled:] if stand.mode == "probe" and stand.visit is None]
        self._fits = False
        return bool(guessed)

    def _check_notes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See whether what the traced blocks noted came out of the graph.

        torch.compile (2.13) loses what is written to an object behind a higher-order operation (flex attention, for
        one) if it was written to before.
        """
        graphs = self._region.graphs
        called = tuple([stand.track.called for stand in self._stands])
        lost = any(stand.lost() for stand in self._stands)
        if called not in graphs.known and not lost:
            lost = self._region.seen(args, kwargs) != called
            graphs.known.add(called)
        if lost:
            graphs.reason = (
                "torch.compile loses what is noted behind a higher-order operation such as flex attention"
            )
            raise NotesLost

    def finish(self) -> bool:
        """As for any call: False if the skipped blocks were not called the way they were when they ran."""
        summary, step = self._session.summary, self._step
        for stand in self._stands:
            row, visit = stand.state.row, stand.visit
            skipped = 0
            if visit is not None and not visit.decision.run:
                if not visit.left or visit.called != visit.slot.called:
                    return False
                skipped = visit.called
            elif visit is not None and not visit.left:
                summary.count(
                    "blocks_not_called",
                    f"{self._name}, branch {step.branch}: the model did not call the last block of a span, which "
                    f"therefore cannot be skipped.",
                )
            row.blocks_run = (stand.called & ~skipped).bit_count()
            if skipped:
                row.skip(skipped)
        summary.rows.extend([stand.state.row for stand in self._stands if stand.called])
        return True

    def retired(self, spans: int) -> dict[int, str] | None:
        """As for any call; a branch that is retired already is not retired again."""
        visits = [stand.visit for stand in self._stands if stand.visit is not None]
        if len(visits) < spans or any(visit.decision.store for visit in visits):
            return None
        return {
            number: stand.state.row.reason
            for number, stand in zip(self._region.graphs.order, self._stands, strict=True)
        }

    def _stand(self, number: int) -> _Stand:
        whole = self._whole
        plan = whole.plans[number]
        state = self._begin_stack(plan)
        track = self._region.graphs.tracks[number]
        if self._retired is not None:
            state.row.reason = self._retired.get(number, "")
        if self._retired is not None or not plan.spans:
            return _Stand(state, track, None, None, None)
        key = SlotKey(self._name, plan.first_span, self._step.branch, 0)
        slot = self._session.slots.get(key) or self._new_slot(key, plan, 0)
        slot.last_step = self._step.run_index
        return _Stand(state, track, *whole.ends[number], slot)

    def _choose(self, settled: int) -> None:
        """A way through each stack that is not settled. A guess: what comes out is only used where it was right."""
        before = "dense"
        for stand in self._stands[settled:]:
            if stand.slot is not None and stand.visit is None:
                # Behind a stack that may be skipped, gates may follow it, and cannot be asked before it is decided.
                stand.mode = (
                    "probe" if before == "probe" and self._ready(stand.slot) else self._guess(stand.slot)
                )
            before = stand.mode
            if stand.mode == "probe" and stand.slot is not None:
                self._predict(stand.track, stand.slot)

    def _ready(self, slot: Slot) -> bool:
        """Whether there is something to skip with, for streams such as these."""
        return (
            self._fits
            and not self._forced
            and slot.signature is not None
            and slot.shapes == self._region.shapes
        )

    def _guess(self, slot: Slot) -> str:
        if not self._ready(slot):
            return "dense"
        try:
            return "dense" if slot.gate.should_run(self._step, _Blind(self._argument)) else "probe"
        except _Looked:
            return "probe"

    def _predict(self, track: Track, slot: Slot) -> None:
        kinds: list[str] = []
        values: list[Tensor | None] = []
        for kind, predictor in zip(slot.kinds, slot.predictors, strict=True):
            if kind == SUM and predictor is not None:
                kinds.append("output" if predictor.of == "output" else SUM)
                values.append(predictor.predict(self._step))
            else:
                kinds.append(kind if kind == ABSENT else SAME)
                values.append(None)
        track.kinds, track.values, track.dtypes = tuple(kinds), tuple(values), slot.dtypes

    def _settle(self, stand: _Stand) -> bool:
        """Decide on a stack and keep its books, if the graph went the way that was decided; else it goes it next."""
        track = stand.track
        if track.twice:
            raise CompileError(_TWICE.format(name=self._name))
        stand.called = track.called
        if stand.slot is None or stand.enters is None or stand.exits is None or track.entered is None:
            return True  # no span, or the model does not call the block that it begins with
        visit = stand.visit or self._visit(stand, stand.slot, stand.enters, track.entered)
        stand.visit = visit
        visit.called = track.called & self._whole.spans[stand.enters.plan.number]
        if visit.decision.run:
            if stand.mode == "probe":
                stand.mode = "run"
                return False
            self._left(visit, stand.probe, stand.exits, track)
            return True
        if stand.mode != "probe":
            stand.mode = "probe"
            return False
        visit.left = track.called & stand.exits.bit != 0
        visit.slot.gate.observe(self._step, stand.probe, visit.decision)
        return True

    def _visit(self, stand: _Stand, slot: Slot, enters: Site, entered: tuple[Tensor | None, ...]) -> Visit:
        track = stand.track
        probe = Probe(
            track.entry or entered,
            entered,
            self._whole.first_block(enters.plan.number),
            track.args,
            track.kwargs,
            None,
            self._argument,
        )
        decision = self._decide(slot, probe, entered)
        stand.state.note(decision)
        stand.probe = probe
        return Visit(enters, slot, probe, decision)

    def _left(self, visit: Visit, probe: Probe, site: Site, track: Track) -> None:
        """A span that ran was left: keep what it added."""
        if track.exit is None:
            return
        slot, decision = visit.slot, visit.decision
        visit.left = True
        # Of the same graph as what comes behind the span, so that a stream which is handed on is the very tensor.
        visit.streams = probe.streams = track.entered or ()
        probe.exit = track.exit
        if decision.store and not self._step.last:
            store(visit, site, self._step, track.exit)
            slot.shapes = self._region.shapes
        slot.gate.observe(self._step, probe, decision)
