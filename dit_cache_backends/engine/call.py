"""One forward of one transformer: spans are entered, run or skipped, and left."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Ahead, Decision, Place, Probe
from dit_cache_backends.engine.offload import HOOKS, bring_in
from dit_cache_backends.engine.passing import check_passed, passed
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.ranks import agreeing, summed_over_ranks
from dit_cache_backends.engine.residuals import predicted, refuse_writes, store
from dit_cache_backends.engine.sessions import Session, Slot, SlotKey, signature
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.engine.visit import (
    HandedOut,
    StackState,
    Visit,
    copied,
    fitted,
)
from dit_cache_backends.summary import Row

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Frame(Protocol):
    """What a call asks of the transformer it is made on."""

    name: str
    writes_in_place: bool

    def model(self) -> nn.Module | None: ...
    def timesteps(self) -> Sequence[float] | None: ...


class Call:
    """Drives the blocks of one transformer through one forward."""

    __slots__ = (
        "_argument",
        "_closed",
        "_forced",
        "_frame",
        "_name",
        "_session",
        "_skipped",
        "_states",
        "_step",
        "_votes",
    )

    def __init__(
        self,
        frame: Frame,
        session: Session,
        step: Step,
        argument: Callable[[str], Any],
        votes: "tuple[ProcessGroup, ...]" = (),
        forced: str = "",
    ) -> None:
        self._frame = frame
        self._name = frame.name
        self._argument = argument
        """Gives an argument of the transformer's own call. No method of this object, which the probes would hold."""
        self._session = session
        self._step = step
        self._votes = votes
        """The groups whose ranks vote on each decision, where the strategy does not see to it that they agree."""
        self._forced = forced
        """Why nothing may be skipped in this forward; empty where something may."""
        self._states: dict[int, StackState] = {}
        self._closed: list[Visit] = []
        self._skipped: set[int] = set()

    def block(
        self, site: Site, module: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Stand in for the call of one block; ``run`` is its class's own ``__call__``."""
        state = self._states.get(site.plan.number)
        if state is None:
            state = self._begin_stack(site.plan)
        elif site.index == 0:
            self._pass_again(state)
        if not site.checked:
            self._check(state, site, args, kwargs)
        number = site.span
        visit = None
        if number is not None:
            visit = state.visits[number]
            if visit is None and site.enters:
                visit = self._enter(state, site, number, module, args, kwargs)
            if visit is not None:
                visit.called |= site.bit
                if visit.result is not None:
                    state.row.blocks_skipped += 1
                    state.row.skipped.append(site.index)
                    self._skipped.add(id(module))
                    if site.seen:
                        return self._skip_seen(visit, site, module, run, args, kwargs)
                    if not site.exits:
                        return site.hand_on(args, kwargs)
                    visit.left = True
                    return site.give(visit.result)
        elif state.entry is None:
            state.entry, state.entry_layout = self._keep(site.read(args, kwargs)), site.layout
        if self._skipped and HOOKS in module.__dict__:
            bring_in(module, self._skipped)
        out = run(module, *args, **kwargs)
        if not site.checked:
            site.check_form(out)
            state.passed = passed(site, state.passes, args, kwargs, out)
        state.row.blocks_run += 1
        if visit is not None:
            if site.seen and visit.decision.store and not self._step.last:
                visit.note(site, out)
            if site.exits:
                self._leave(visit, site, out)
        return out

    def _begin_stack(self, plan: StackPlan) -> StackState:
        step = self._step
        row = Row(self._name, plan.name, step.branch, step.run_index, step.run_total)
        state = self._states[plan.number] = StackState(plan, row)
        return state

    @staticmethod
    def _check(state: StackState, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare a block's arguments with its card, as long as it has not run."""
        streams = site.read(args, kwargs)
        site.check_streams(streams)
        if state.passed is not None:
            check_passed(state.passed, site, state.passes, streams)

    @staticmethod
    def _skip_seen(
        visit: Visit, site: Site, module: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a skipped block hands out whose own output is seen outside its span, in part or whole."""
        held: tuple[Any, ...] = ()
        if None in site.order:
            kept = visit.slot.held.get(site.index)
            # Without one it was not called when the span ran, so ``finish`` will have the forward made again.
            held = site.held(run(module, *args, **kwargs)) if kept is None else copied(kept)
        if site.exits:
            visit.left = True
            return site.give(visit.result or (), held)
        streams = site.read(args, kwargs)
        return site.give(visit.inside(site, streams) if site.shown else streams, held)

    def finish(self) -> bool:
        """Close the books of this forward; False if a skipped span was not called the way it was when it ran.

        Then what came out is wrong and the forward has to be made again with every span running.
        """
        rows = self._session.summary.rows
        for state in self._states.values():
            self._closed += [visit for visit in state.visits if visit is not None]
        for visit in self._closed:
            if visit.result is not None:
                if not visit.left or visit.called != visit.slot.called:
                    return False
            elif not visit.left:
                self._session.summary.count(
                    "blocks_not_called",
                    f"{self._name}, branch {self._step.branch}: the model did not call the last block of a span, which "
                    f"therefore cannot be skipped.",
                )
        rows.extend([state.row for state in self._states.values()])
        return True

    def retired(self, spans: int) -> dict[int, str] | None:
        """Why nothing will be skipped any more on this branch, by the number of the stack; None while something may.

        Known once the gates of all ``spans`` of the transformer were asked and say that they will never skip again.
        """
        closed = self._closed
        if self._votes or any(visit.decision.store for visit in closed):
            return None
        if len({(visit.entered.plan.number, visit.entered.span) for visit in closed}) < spans:
            return None
        return {number: state.row.reason for number, state in self._states.items()}

    def _pass_again(self, state: StackState) -> None:
        if any(visit is not None for visit in state.visits):
            self._closed.extend(visit for visit in state.visits if visit is not None)
            state.visits = [None] * len(state.visits)
            state.foretold.clear()
            state.entry = None
            state.passes += 1

    def _keep(self, streams: Streams) -> Streams:
        if self._frame.writes_in_place:
            return tuple([None if stream is None else stream.clone() for stream in streams])
        return streams

    def _enter(
        self,
        state: StackState,
        site: Site,
        number: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Visit:
        """Span ``number`` of a stack is entered: decide, and where it is skipped make what it hands out."""
        step, plan = self._step, site.plan
        streams = site.read(args, kwargs)
        kept = self._keep(streams)
        if state.entry is None:
            state.entry, state.entry_layout = kept, site.layout
        slot = self._slot(
            SlotKey(self._name, plan.first_span + number, step.branch, state.passes), plan, number
        )
        slot.last_step = step.run_index
        if slot.follows is None:
            slot.follows = state.hands_on(number, streams)
        ahead = None
        if len(plan.spans) > 1 and not self._frame.writes_in_place:
            ahead = partial(self._ahead, state, plan, number)
        entry = state.entry
        if plan.alternate is not None and state.entry_layout != site.layout:
            entry = fitted(plan.alternate, entry, kept)
        probe = Probe(entry, kept, module, args, kwargs, ahead, self._argument)
        if state.foretold:
            handed_out = state.handed_out
            if handed_out is not None and handed_out.comes_in(number, streams[0]):
                probe.measured = state.foretold.get(number)
            else:
                state.foretold.clear()
                if handed_out is not None and handed_out.span + 1 == number:
                    slot.follows = False
        decision = self._decide(slot, probe, streams)
        if self._votes:
            decision = _voted(decision, streams, self._votes)
        probe.decided()
        state.note(decision)
        visit = state.visits[number] = Visit(site, slot, probe, decision)
        if decision.run:
            if decision.store:
                visit.watch()
            return visit
        if number + 1 in state.foretold:
            result = _with_versions(slot, plan, step, streams)
            main = result[0]
            state.handed_out = (
                None if main is None or main.is_inference() else HandedOut(number, main, main._version)
            )
        else:
            result = predicted(slot, plan, step, streams)
        visit.result = result
        slot.gate.observe(step, probe, decision)
        return visit

    def _slot(self, key: SlotKey, plan: StackPlan, number: int) -> Slot:
        session = self._session
        slot = session.slots.get(key)
        if slot is None:
            place = Place(
                self._name,
                plan.name,
                plan.spans[number],
                plan.depth,
                key.branch,
                session.peers(key),
                session.shared.setdefault((self._name, key.branch), {}),
                session.summary.count,
                self._frame.model,
                self._frame.timesteps,
            )
            strategy = plan.strategy.for_steps(self._step.total)
            session.summary.settings.setdefault((self._name, plan.name), dict(strategy.settings()))
            slot = session.slots[key] = Slot(strategy.gate(place), strategy.predictor)
        return slot

    def _ahead(self, state: StackState, plan: StackPlan, number: int, probe: Probe) -> Iterator[Ahead]:
        """What ``Probe.ahead`` gives for span ``number``."""
        state.foretold.clear()
        slots, step, spans = self._session.slots, self._step, plan.spans
        slot = slots.get(SlotKey(self._name, plan.first_span + number, step.branch, state.passes))
        while slot is not None and slot.signature == signature(probe.streams):
            number += 1
            if number == len(spans) or spans[number].start != spans[number - 1].stop:
                return
            following = slots.get(SlotKey(self._name, plan.first_span + number, step.branch, state.passes))
            if following is None or following.follows is False:
                return
            result = predicted(slot, plan, step, probe.streams)
            probe = Probe(probe.entry, result, probe.block, probe.args, probe.kwargs)
            slot = following
            yield Ahead(slot.gate, probe, partial(state.foretold.__setitem__, number))

    def _decide(self, slot: Slot, probe: Probe, streams: Streams) -> Decision:
        if self._forced:
            return Decision(True, self._forced)
        decision = slot.gate.should_run(self._step, probe)
        if decision.difference is not None and not math.isfinite(decision.difference):
            self._session.summary.count(
                "non_finite_difference",
                f"{self._name}, branch {self._step.branch}: the difference was {decision.difference}; the blocks ran.",
            )
            return Decision(True, "non-finite difference", decision.difference)
        if decision.run:
            return decision
        if slot.signature is None:
            return Decision(True, "nothing stored", decision.difference)
        if slot.signature != signature(streams):
            self._session.summary.count(
                "shape_changed",
                f"{self._name}, branch {self._step.branch}: the streams have another shape, dtype or device than what "
                f"was stored; the blocks ran.",
            )
            return Decision(True, "shape changed", decision.difference)
        return decision

    def _leave(self, visit: Visit, site: Site, out: Any) -> None:
        """A span that ran was left: keep what it added."""
        slot, probe, decision = visit.slot, visit.probe, visit.decision
        visit.left = True
        probe.exit = after = site.streams_from(out, probe.streams)
        if decision.store:
            if not self._frame.writes_in_place:
                refuse_writes(visit, site)
            if not self._step.last:
                store(visit, site, self._step, after)
        slot.gate.observe(self._step, probe, decision)


def _with_versions(slot: Slot, plan: StackPlan, step: Step, streams: Streams) -> Streams:
    """What a skipped span hands out, in tensors that tell whether the model has written into them since."""
    if not torch.is_inference_mode_enabled():
        return predicted(slot, plan, step, streams)
    with torch.inference_mode(False), torch.no_grad():
        return predicted(slot, plan, step, streams)


def _voted(decision: Decision, streams: Streams, groups: "tuple[ProcessGroup, ...]") -> Decision:
    """What the ranks decide together: where one has to run, all run."""
    main = streams[0]
    votes = torch.tensor(float(decision.run), device=None if main is None else main.device)
    with agreeing(groups):
        votes = summed_over_ranks(votes)
    if not votes.item() or decision.run:
        return decision
    return Decision(True, "another rank runs", decision.difference)
