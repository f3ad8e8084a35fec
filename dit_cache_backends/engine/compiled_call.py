"""One forward of a transformer that is compiled as a whole: decisions between graphs, none within.

A skipped step is one graph, a computed one too if that is known before any tensor is seen; else a first graph skips and
shows what the gate looks at, and a second one runs the span. With several stacks it is up to one more for each.
A step in which all is known to be skipped is a graph that shows nothing. ``compiled_blocks`` has the ways through the
blocks, ``compiled_stacks`` how one is chosen.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dit_cache_backends.engine.call import Call, Frame
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.compiled_blocks import Track
from dit_cache_backends.engine.compiled_stacks import Blind, Stand, blindly, predict, signature_of
from dit_cache_backends.engine.gates import Probe
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.residuals import store
from dit_cache_backends.engine.sessions import Session, Slot, SlotKey
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.engine.visit import Visit
from dit_cache_backends.errors import CompileError

if TYPE_CHECKING:
    from dit_cache_backends.engine.graphs import Region


_TWICE = (
    "{name}: the model ran through one of its stacks several times in a forward, and did not do so when it was first "
    "called. Such a model cannot be compiled as a whole with a cache backend enabled: compile its blocks instead, "
    "with transformer.compile_repeated_blocks(...)."
)


class NotesLost(Exception):
    """What the traced blocks noted did not come out of the graph."""


class WholeCall(Call):
    """Makes one forward in graphs, and keeps the engine's books beside them."""

    __slots__ = ("_arguments", "_fits", "_region", "_retired", "_stands", "_sure", "_whole")

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
        self._stands: list[Stand] = []
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self._fits = True
        """Nothing speaks against skipping what is known to be skipped."""
        self._sure = True
        """What was known beforehand was right so far."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the transformer's own ``__call__``."""
        graphs = self._region.graphs
        self._arguments = args, kwargs
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
                    if stand.mode != "skip":  # which keeps nothing to be handed out again
                        stand.mode = "replay"

    def _give_up(self, settled: int) -> bool:
        """After an error: whether streams may have come in that do not fit what was predicted. Then nothing is skipped.

        Their shapes may depend on what is in the arguments. In a dense graph that is seen, or the error comes again.
        """
        guessed = [
            stand
            for stand in self._stands[settled:]
            if stand.mode in ("probe", "skip") and stand.visit is None
        ]
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
        return {stand.number: stand.state.row.reason for stand in self._stands}

    def _stand(self, number: int) -> Stand:
        whole = self._whole
        plan = whole.plans[number]
        state = self._begin_stack(plan)
        track = self._region.graphs.tracks[number]
        if self._retired is not None:
            state.row.reason = self._retired.get(number, "")
        if self._retired is not None or not plan.spans:
            return Stand(number, state, track, None, None, None)
        key = SlotKey(self._name, plan.first_span, self._step.branch, 0)
        slot = self._session.slots.get(key) or self._new_slot(key, plan, 0)
        slot.last_step = self._step.run_index
        return Stand(number, state, track, *whole.ends[number], slot)

    def _choose(self, settled: int) -> None:
        """A way through each stack that is not settled. A guess: what comes out is only used where it was right."""
        open_stands, before = self._stands[settled:], "dense"
        for stand in open_stands:
            if stand.slot is not None and stand.visit is None:
                ready = self._ready(stand.slot)
                looks = stand.number in self._whole.looking or not self._sure
                stand.mode = stand.guess(self._step, self._argument, before, looks) if ready else "dense"
            before = stand.mode
        if any(stand.mode != "skip" for stand in open_stands if stand.slot is not None):
            for stand in open_stands:  # Another graph may follow, and want what this one gives.
                stand.mode = "probe" if stand.mode == "skip" else stand.mode
        self._predict()

    def _ready(self, slot: Slot) -> bool:
        """Whether there is something to skip with, for streams such as these."""
        return (
            self._fits
            and not self._forced
            and slot.signature is not None
            and slot.shapes == self._region.shapes
        )

    def _predict(self) -> None:
        for stand in self._stands:
            if stand.mode in ("probe", "skip") and stand.slot is not None:
                predict(stand.track, stand.slot, self._step)

    def _settle(self, stand: Stand) -> bool:
        """Decide on a stack and keep its books, if the graph went the way that was decided; else it goes it next."""
        track = stand.track
        if track.twice:
            raise CompileError(_TWICE.format(name=self._name))
        stand.called = track.called
        slot, enters, exits = stand.slot, stand.enters, stand.exits
        if slot is None or enters is None or exits is None:
            return True  # no span
        if stand.mode == "skip":
            return track.forms is None or self._settle_known(stand, slot, enters, exits)
        if track.entered is None:
            return True  # the model does not call the block that it begins with
        visit = stand.visit = stand.visit or self._visit(stand, slot, enters, track.entered)
        visit.called = track.called & self._whole.spans[stand.number]
        if visit.decision.run:
            if stand.mode == "probe":
                stand.mode = "run"
                return False
            self._left(visit, stand.probe, exits, track)
            return True
        if stand.mode != "probe":
            stand.mode = "probe"
            return False
        visit.left = track.called & exits.bit != 0
        visit.slot.gate.observe(self._step, stand.probe, visit.decision)
        return True

    def _settle_known(self, stand: Stand, slot: Slot, enters: Site, exits: Site) -> bool:
        """As ``_settle``, of a graph that skipped what was known to be skipped; False if that turns out wrong."""
        track, probe = stand.track, Blind(self._argument)
        decision = blindly(slot.gate, self._step, probe)
        if decision is None or decision.run:
            self._sure = False  # The stack before is decided by now, and its gate follows that.
            return False
        if slot.signature != signature_of(track.forms or ()):
            self._fits = False
            return False
        stand.state.note(decision)
        block = self._whole.first_block(stand.number)
        # The streams that came in stay in their graph.
        visit = stand.visit = Visit(enters, slot, Probe((), (), block, (), {}), decision)
        visit.called = track.called & self._whole.spans[stand.number]
        visit.left = track.called & exits.bit != 0
        probe.tell(slot.gate, self._step, decision, block, partial(self._look, stand))
        return True

    def _look(self, stand: Stand) -> Probe:
        """The probe of a stack that was skipped without one, from a graph that gives out what is in it."""
        self._whole.looking.add(stand.number)
        stand.mode = "probe"
        self._predict()
        self._region.graph([each.mode for each in self._stands], *self._arguments)
        return self._probe(stand)

    def _visit(self, stand: Stand, slot: Slot, enters: Site, entered: Streams) -> Visit:
        probe = stand.probe = self._probe(stand)
        decision = self._decide(slot, probe, entered)
        stand.state.note(decision)
        return Visit(enters, slot, probe, decision)

    def _probe(self, stand: Stand) -> Probe:
        track = stand.track
        entered, block = track.entered or (), self._whole.first_block(stand.number)
        return Probe(track.entry or entered, entered, block, track.args, track.kwargs, None, self._argument)

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
